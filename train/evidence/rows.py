"""The rows of the paper's tables and of the controls it lacks: which models they are, what each needs, how each is trained."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from lugpi_core.errors import InputError, nearest
from lugpi_core.store.layout import PROMPT_TEXT
from train.learning.losses import Terms
from train.options.settings import Privileged

Group = Literal["table1", "table2", "controls", "unlabelled"]
GROUPS: tuple[Group, ...] = get_args(Group)
ALL = "all"
BASELINE, TEXT_TEACHER, TEXT_STUDENT = "baseline", "teacher-none", "student-none"
# Of models that read the generator's text vectors in place of image tokens, by command.
VECTORS: Mapping[str, str] = {"teacher": "teacher-text", "student": "student-text"}
MORE = "-more"  # ends the names of rows that are distilled on unlabelled texts too


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table: a kind of model, trained once for each seed.

    Attributes:
        name: of the row, and of its models' folders.
        command: which of the four kinds it is.
        groups: the tables that it is in; the first is its own.
        column: the image tokens that it reads, or None.
        privileged: which images it sees, or the generator's text vectors; of a student, what its teachers see.
        teachers: the rows whose models of the same seed it is distilled from.
        terms: a student's soft terms.
        more: whether a student is distilled on unlabelled texts too.
    """

    name: str
    command: Literal["baseline", "images", "teacher", "student"]
    groups: tuple[Group, ...]
    column: str | None = None
    privileged: Privileged = "none"
    teachers: tuple[str, ...] = ()
    terms: Terms = "both"
    more: bool = False

    @property
    def control(self) -> str | None:
        """The row that differs in its images alone: only a gain over it can come from the images. None where there is none: a student with
        another loss, or of several teachers, differs from the text-only teacher's student in that too."""
        if self.terms != "both" or len(self.teachers) > 1:
            return None
        control = {"teacher": TEXT_TEACHER, "student": TEXT_STUDENT + MORE * self.more}.get(self.command)
        return None if control == self.name else control

    @property
    def vectors(self) -> str | None:
        """The row that reads the generator's text vectors where this one reads images, and differs in nothing else: a gain that it has too
        is not the images'. None for a row of other images, or of other texts."""
        if self.privileged != "images" or self.more or self.control is None:
            return None
        return VECTORS[self.command]


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """One model of a row, which may or may not exist yet."""

    row: Row
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder, unless it was found under another."""
        return model_name(self.row.name, self.seed)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the models that it is distilled from."""
        return tuple(model_name(teacher, self.seed) for teacher in self.row.teachers)


def model_name(row: str, seed: int) -> str:
    """Return the name of a row's model: the row's name itself for seed 0."""
    return row if seed == 0 else f"{row}-seed{seed}"


def student_name(kind: str, terms: Terms) -> str:
    """Return the name of the row of the students of one kind of teacher."""
    return f"student-{kind}" if terms == "both" else f"student-{kind}-{terms}"


def clip_first(columns: Iterable[str]) -> tuple[str, ...]:
    """Return columns in the order of their rows: CLIP's first, then by name."""
    return tuple(sorted(columns, key=lambda column: ("clip" not in column, column)))


def rows_of(
    columns: Sequence[str], *, ablations: Sequence[Terms] = ("ce", "l2"), has_more: bool = False, has_vectors: bool = False
) -> tuple[Row, ...]:
    """Return every row, in the tables' order.

    Args:
        columns: the image tokens that get rows; shuffled and blank images are made from the first.
        ablations: which parts of the loss get students of their own; none where the loss has no such parts.
        has_more: whether there are unlabelled texts that students can be distilled on too.
        has_vectors: whether there are vectors of the generator's text encoder.

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
    if has_more:
        of_more = [_student_row(column, (column,), "images", ("unlabelled",)) for column in columns]
        of_more.append(_student_row("none", ("none",), "none", ("unlabelled",)))
        rows += [replace(row, name=row.name + MORE, more=True) for row in of_more]
    names = [row.name for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            got=f"columns {', '.join(columns)}, which give two rows named {twice[0]}",
            expected="names that distinguish the rows",
            do="choose among them with --columns",
        )
    return tuple(rows)


def _teacher(kind: str, column: str | None, privileged: Privileged, group: Group) -> Row:
    return Row(name=f"teacher-{kind}", command="teacher", groups=(group,), column=column, privileged=privileged)


def _student_row(kind: str, teachers: tuple[str, ...], privileged: Privileged, groups: tuple[Group, ...], terms: Terms = "both") -> Row:
    teachers = tuple(f"teacher-{teacher}" for teacher in teachers)
    return Row(name=student_name(kind, terms), command="student", groups=groups, privileged=privileged, teachers=teachers, terms=terms)


def chosen_tables(requested: Sequence[str], rows: Sequence[Row]) -> dict[Group, tuple[Row, ...]]:
    """Return the requested tables, each with its rows: a table's name requests all of its rows, a row's name that row in its own table.

    Raises:
        InputError: a name is neither a table's nor a row's.
    """
    own = {row.name: row.groups[0] for row in rows}
    shown: dict[Group, set[str]] = {}
    groups = [group for group in GROUPS if group != "unlabelled" or any(row.more for row in rows)]
    known = (ALL, *groups, *own)
    for name in requested:
        if name not in known:
            do = "name the texts with --unlabelled" if name == "unlabelled" or name.endswith(MORE) else nearest(name, known)
            if name in VECTORS.values():
                do = f"run python -m featurize with its flags and --encoders {PROMPT_TEXT}, which generates no image"
                do += " (pictures of your own have no such rows)"
            raise InputError(got=f"--rows {name}", expected=f"one of {', '.join(known)}", do=do)
        for group in groups:
            if name in (ALL, group):
                shown[group] = {row.name for row in rows if group in row.groups}
    for name in requested:
        if name in own and not any(name in names for names in shown.values()):
            shown.setdefault(own[name], set()).add(name)
    return {group: tuple(row for row in rows if row.name in shown[group]) for group in GROUPS if group in shown}


def models_of(requested: Iterable[Row], rows: Sequence[Row], seeds: Iterable[int]) -> list[PlannedModel]:
    """Return the models of the requested rows and those that they need, in the order of training: seed by seed, so that the first seed's
    results are complete early, and teachers before their students."""
    names = {row.name for row in requested}
    names |= {teacher for row in rows if row.name in names for teacher in row.teachers}
    ordered = sorted((row for row in rows if row.name in names), key=lambda row: row.command == "student")
    return [PlannedModel(row=row, seed=seed) for seed in seeds for row in ordered]
