"""The rows of the paper's tables and of the controls it lacks: which models they are, what each needs, how each is trained."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from lugpi_core.errors import InputError, nearest
from lugpi_core.store.layout import PROMPT_TEXT
from train.learning.losses import Terms
from train.options.settings import Privileged
from train.options.tables import APART
from train.options.training import folds_suffix

Group = Literal["table1", "table2", "controls", "folds", "ensemble", "unlabelled"]
GROUPS: tuple[Group, ...] = get_args(Group)
ALL = "all"
BASELINE, TEXT_TEACHER, TEXT_STUDENT = "baseline", "teacher-none", "student-none"
# Of models that read the generator's text vectors in place of image tokens, by command.
VECTORS: Mapping[str, str] = {"teacher": "teacher-text", "student": "student-text"}
_WITHOUT_IMAGES = (TEXT_STUDENT, "student-blank")
# A student's teachers, and of those with folds the teachers on all texts.
_DEPTH = 2
FOLDS_IN_NAME = re.compile(r"-folds\d+")
ENSEMBLE_IN_NAME = re.compile(r"-ensemble(\d+)")
LEARNT_ENDING = "-learnt"  # ends the name of the row whose teachers' shares are learnt
MORE = "-more"  # ends the names of rows that are distilled on unlabelled texts too


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table: a kind of model, trained once for each seed.

    Attributes:
        name: of the row, and of its models' folders.
        command: which of the four kinds it is.
        groups: the tables that it is in; the first is its own. None for a teacher with folds: what it says of test texts is what the
            teacher on all says, which has a row.
        column: the image tokens that it reads, or None.
        privileged: which images it sees, or the generator's text vectors; of a student, what its teachers see.
        teachers: the rows whose models of the same seed it is distilled from; of a teacher with folds, that of the teacher on all texts.
        terms: a student's soft terms.
        members: from how many teachers of each kind it is distilled: that of its own seed and those of other seeds (``member_seeds``).
        more: whether a student is distilled on unlabelled texts too.
        folds: on how many folds the teacher's outputs are cross-fitted; None = on none.
        is_learnt: whether the shares of a student's teachers are learnt; else they are equal. Such a row is shown only if it is named.
    """

    name: str
    command: Literal["baseline", "images", "teacher", "student"]
    groups: tuple[Group, ...]
    column: str | None = None
    privileged: Privileged = "none"
    teachers: tuple[str, ...] = ()
    terms: Terms = "both"
    members: int = 1
    more: bool = False
    folds: int | None = None
    is_learnt: bool = False

    @property
    def control(self) -> str | None:
        """The row that differs in its images alone: only a gain over it can come from the images. None where there is none: a student with
        another loss, or of several teachers, differs from the text-only teacher's student in that too."""
        if self.terms != "both" or len(self.teachers) > 1:
            return None
        student = TEXT_STUDENT + folds_suffix(self.folds) + ensemble_suffix(self.members) + MORE * self.more
        control = {"teacher": TEXT_TEACHER, "student": student}.get(self.command)
        return None if control == self.name else control

    @property
    def taught_by(self) -> str:
        """The name of a student's only kind of teacher; of an ensemble that of their joint answers, which is no row's."""
        return self.teachers[0] + ensemble_suffix(self.members)

    @property
    def vectors(self) -> str | None:
        """The row that reads the generator's text vectors where this one reads images, and differs in nothing else: a gain that it has too
        is not the images'. None for a row of other images."""
        if self.privileged != "images" or self.control is None:
            return None
        return VECTORS[self.command] + folds_suffix(self.folds) + ensemble_suffix(self.members) + MORE * self.more


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """One model of a row, which may or may not exist yet.

    Attributes:
        row: it.
        seed: of the model.
        episode: seed that draws its texts in tables of few shots; None = its own. Another teacher of an ensemble has its student's.
    """

    row: Row
    seed: int
    episode: int | None = None

    @property
    def name(self) -> str:
        """Name of its folder, unless it was found under another."""
        return model_name(self.row.name, self.seed)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the models that it is distilled from, or, of a teacher with folds, of the teacher on all texts."""
        seeds = member_seeds(self.seed, self.row.members)
        return tuple(model_name(teacher, seed) for teacher in self.row.teachers for seed in seeds)


def member_seeds(seed: int, members: int) -> tuple[int, ...]:
    """Return the seeds of the teachers of an ensemble, the student's own first. Students of different seeds share no teacher, so that they
    are independent of each other: their seeds are less than ``APART`` apart."""
    return tuple(seed + APART * member for member in range(members))


def ensemble_suffix(members: int) -> str:
    """Return what ends the names of rows of students with so many teachers of a kind; nothing for one."""
    return "" if members == 1 else f"-ensemble{members}"


def model_name(row: str, seed: int) -> str:
    """Return the name of a row's model: the row's name itself for seed 0."""
    return row if seed == 0 else f"{row}-seed{seed}"


def teacher_name(kind: str, folds: int | None = None) -> str:
    """Return the name of the row of one kind of teacher."""
    return f"teacher-{kind}{folds_suffix(folds)}"


def student_name(kind: str, terms: Terms, folds: int | None = None, members: int = 1) -> str:
    """Return the name of the row of the students of one kind of teacher."""
    return f"student-{kind}{folds_suffix(folds)}{ensemble_suffix(members)}{'' if terms == 'both' else f'-{terms}'}"


def _plain(row: str) -> str:
    """Return the name of a row without its folds, its ensemble and its unlabelled texts."""
    return ENSEMBLE_IN_NAME.sub("", FOLDS_IN_NAME.sub("", row.removesuffix(MORE)))


def is_of_vectors(row: str) -> bool:
    """Whether a row is that of models that read the generator's text vectors, by its name."""
    return _plain(row) in VECTORS.values()


def is_without_images(row: str) -> bool:
    """Whether a row is that of students whose teachers see no images, or blank ones, by its name; they have none to predict."""
    return _plain(row) in _WITHOUT_IMAGES


def clip_first(columns: Iterable[str]) -> tuple[str, ...]:
    """Return columns in the order of their rows: CLIP's first, then by name."""
    return tuple(sorted(columns, key=lambda column: ("clip" not in column, column)))


def rows_of(
    columns: Sequence[str],
    *,
    ablations: Sequence[Terms] = ("ce", "l2"),
    has_more: bool = False,
    has_vectors: bool = False,
    folds: Sequence[int] = (),
    ensembles: Sequence[int] = (),
) -> tuple[Row, ...]:
    """Return every row, in the tables' order.

    Args:
        columns: the image tokens that get rows; shuffled and blank images are made from the first.
        ablations: which parts of the loss get students of their own; none where the loss has no such parts.
        has_more: whether there are unlabelled texts that students can be distilled on too.
        has_vectors: whether there are vectors of the generator's text encoder.
        folds: numbers of folds, for each of which there are students of cross-fitted teachers.
        ensembles: numbers of teachers, for each of which there are students of so many teachers of each kind.

    Raises:
        InputError: two columns would give rows of one name.
    """
    rows = [Row(name=BASELINE, command="baseline", groups=GROUPS)]
    rows += [Row(name=f"images-{column}", command="images", groups=("table1",), column=column, privileged="images") for column in columns]
    rows += [_teacher(column, column, "images", "table1") for column in columns]
    rows += [_student_row(column, (column,), "images", ("table1", "table2")) for column in columns]
    rows += [_student_row(column, (column,), "images", ("table2",), terms) for column in columns for terms in ablations]
    of_images: dict[Privileged, str] = dict.fromkeys(("shuffled", "blank"), columns[0]) if columns else {}
    read: dict[Privileged, str | None] = {"none": None, **({"text": PROMPT_TEXT} if has_vectors else {}), **of_images}
    for privileged, column in read.items():
        rows.append(_teacher(privileged, column, privileged, "controls"))
        rows.append(_student_row(privileged, (privileged,), privileged, ("controls",)))
    if len(columns) > 1:
        rows.append(_student_row(ALL, tuple(columns), "images", ("controls",)))
        rows.append(replace(rows[-1], name=rows[-1].name + LEARNT_ENDING, is_learnt=True))
    of_folds = [row for row in rows if row.command == "teacher"]
    for count in folds:
        rows += [replace(row, name=row.name + folds_suffix(count), teachers=(row.name,), groups=(), folds=count) for row in of_folds]
        rows += [_student_of(row, "folds", count) for row in of_folds]
    rows += [_student_of(row, "ensemble", None, members) for members in ensembles for row in of_folds]
    if has_more:
        students = [_student_of(row, "unlabelled", count) for count in (None, *folds) for row in of_folds]
        students += [_student_of(row, "unlabelled", None, members) for members in ensembles for row in of_folds]
        rows += [replace(row, name=row.name + MORE, more=True) for row in students]
    names = [row.name for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            got=f"columns {', '.join(columns)}, which give two rows named {twice[0]}",
            expected="names that distinguish the rows",
            do="choose among them with --columns",
        )
    return tuple(rows)


def _teacher(kind: str, column: str | None, privileged: Privileged, group: Group) -> Row:
    return Row(name=teacher_name(kind), command="teacher", groups=(group,), column=column, privileged=privileged)


def _student_row(kind: str, teachers: tuple[str, ...], privileged: Privileged, groups: tuple[Group, ...], terms: Terms = "both") -> Row:
    names = tuple(teacher_name(teacher) for teacher in teachers)
    return Row(name=student_name(kind, terms), command="student", groups=groups, privileged=privileged, teachers=names, terms=terms)


def _student_of(teacher: Row, group: Group, folds: int | None, members: int = 1) -> Row:
    """Return the row of the students of a teacher, of the same teacher with folds, or of an ensemble of such teachers."""
    kind = teacher.name.removeprefix(teacher_name(""))
    row = _student_row(kind, (kind,), teacher.privileged, (group,))
    name = student_name(kind, "both", folds, members)
    return replace(row, name=name, teachers=(teacher_name(kind, folds),), folds=folds, members=members)


def chosen_tables(requested: Sequence[str], rows: Sequence[Row]) -> dict[Group, tuple[Row, ...]]:
    """Return the requested tables, each with its rows: a table's name requests all of its rows, a row's name that row in its own table.

    Raises:
        InputError: a name is neither a table's nor a row's.
    """
    own = {row.name: row.groups[0] for row in rows if row.groups}
    shown: dict[Group, set[str]] = {}
    there = {
        "folds": any(row.folds for row in rows),
        "ensemble": any(row.members > 1 for row in rows),
        "unlabelled": any(row.more for row in rows),
    }
    groups = [group for group in GROUPS if there.get(group, True)]
    known = (ALL, *groups, *own)
    for name in requested:
        if name not in known:
            do = "name the texts with --unlabelled" if name == "unlabelled" or name.endswith(MORE) else nearest(name, known)
            if name == "folds" or (FOLDS_IN_NAME.search(name) and not any(row.folds for row in rows)):
                do = "give the number of folds with --folds"
            elif name == "ensemble" or (ENSEMBLE_IN_NAME.search(name) and not there["ensemble"]):
                do = "give the number of teachers with --ensemble"
            elif is_of_vectors(name):
                do = f"run python -m featurize with its flags and --encoders {PROMPT_TEXT}, which generates no image"
                do += " (pictures of your own have no such rows)"
            raise InputError(got=f"--rows {name}", expected=f"one of {', '.join(known)}", do=do)
        for group in groups:
            if name in (ALL, group):
                shown[group] = {row.name for row in rows if group in row.groups and not row.is_learnt}
    for name in requested:
        if name in own and not any(name in names for names in shown.values()):
            shown.setdefault(own[name], set()).add(name)
    return {group: tuple(row for row in rows if row.name in shown[group]) for group in GROUPS if group in shown}


def models_of(requested: Iterable[Row], rows: Sequence[Row], seeds: Iterable[int]) -> list[PlannedModel]:
    """Return the models of the requested rows and those that they need, in the order of training: seed by seed, so that the first seed's
    results are complete early, and teachers before their students."""
    names, most = {row.name for row in requested}, max((row.members for row in rows), default=1)
    for _ in range(_DEPTH):
        names |= {teacher for row in rows if row.name in names for teacher in row.teachers}
    chosen, models = [row for row in rows if row.name in names], []
    for seed in seeds:
        of_seed = [PlannedModel(row=row, seed=seed) for row in chosen]
        members = {member for model in of_seed for member in model.needs}
        teachers = [row for row in chosen if row.command == "teacher"]
        more = [PlannedModel(row=row, seed=other, episode=seed) for row in teachers for other in member_seeds(seed, most)[1:]]
        models += sorted([*of_seed, *(model for model in more if model.name in members)], key=lambda model: model.row.command == "student")
    return models
