"""The rows of the tables: which there are, in which order, what each needs, and its loss."""

from dataclasses import replace
from typing import Any

import pytest

from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError
from train.evidence.compare import ablations_of
from train.evidence.row_figures import PAPER_DATASETS, paper_accuracy, paper_dataset
from train.evidence.rows import chosen_tables, clip_first, models_of, rows_of
from train.evidence.schedule import row_loss
from train.models.kinds import loss_weights
from train.options.settings import DistillationSettings
from train.options.tables import TablesOptions

COLUMNS = ("clip-vit-b32", "vit-b16")
ROWS = rows_of(COLUMNS)
BY_NAME = {row.name: row for row in ROWS}
TABLE_1 = [
    "baseline",
    "images-clip-vit-b32",
    "images-vit-b16",
    "teacher-clip-vit-b32",
    "teacher-vit-b16",
    "student-clip-vit-b32",
    "student-vit-b16",
]
TABLE_2 = [
    "baseline",
    "student-clip-vit-b32",
    "student-vit-b16",
    "student-clip-vit-b32-ce",
    "student-clip-vit-b32-l2",
    "student-vit-b16-ce",
    "student-vit-b16-l2",
]
CONTROLS = [
    "baseline",
    "teacher-none",
    "student-none",
    "teacher-shuffled",
    "student-shuffled",
    "teacher-blank",
    "student-blank",
    "student-all",
]


def shown(*requested: str) -> dict[str, list[str]]:
    return {group: [row.name for row in rows] for group, rows in chosen_tables(requested, ROWS).items()}


def options(**more: Any) -> TablesOptions:
    return TablesOptions(**{"dataset": "20ng", **more})


def test_the_tables_have_the_papers_rows_and_the_controls_it_lacks() -> None:
    assert shown("all") == {"table1": TABLE_1, "table2": TABLE_2, "controls": CONTROLS}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("table1",), {"table1": TABLE_1}),
        (("controls", "table2"), {"table2": TABLE_2, "controls": CONTROLS}),
        (("student-none",), {"controls": ["student-none"]}),
        (("teacher-none", "student-vit-b16", "baseline"), {"table1": ["baseline", "student-vit-b16"], "controls": ["teacher-none"]}),
        (("baseline", "controls"), {"controls": CONTROLS}),
        (("student-vit-b16-ce",), {"table2": ["student-vit-b16-ce"]}),
    ],
)
def test_tables_and_rows_are_requested_by_name(asked: tuple[str, ...], expected: dict[str, list[str]]) -> None:
    assert shown(*asked) == expected


def test_an_unknown_row_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'student-vit-b16'"):
        shown("table1", "student-vitb16")


def test_few_columns_have_fewer_rows() -> None:
    assert "student-all" not in {row.name for row in rows_of(("clip-demo",))}
    assert [row.name for row in rows_of(())] == ["baseline", "teacher-none", "student-none"]


def test_the_row_of_learnt_shares_is_in_a_table_only_if_it_is_named() -> None:
    row = BY_NAME["student-all-learnt"]
    assert row.teachers == BY_NAME["student-all"].teachers
    assert row.is_learnt
    assert row.control is None
    assert row not in chosen_tables(("all",), ROWS)["controls"]
    assert chosen_tables(("student-all-learnt", "student-all"), ROWS) == {"controls": (BY_NAME["student-all"], row)}
    assert row in chosen_tables(("all", "student-all-learnt"), ROWS)["controls"]


def test_only_ablations_of_the_loss_have_rows() -> None:
    names = {row.name for row in rows_of(COLUMNS, ablations=())}
    assert names == {row.name for row in ROWS if row.terms == "both"}
    assert {row.terms for row in rows_of(COLUMNS, ablations=("ce",))} == {"both", "ce"}


def test_columns_that_give_two_rows_one_name_are_refused() -> None:
    with pytest.raises(InputError, match=r"two rows named student-none.*--columns"):
        rows_of(("clip-demo", "none"))
    with pytest.raises(InputError, match="two rows named student-a-ce"):
        rows_of(("a", "a-ce"))


def test_clip_comes_first() -> None:
    assert clip_first(["vit-b16", "a", "clip-vit-l14", "clip-vit-b32"]) == ("clip-vit-b32", "clip-vit-l14", "a", "vit-b16")


def test_models_are_ordered_by_seed_then_teachers_first() -> None:
    models = models_of([BY_NAME["student-all"], BY_NAME["baseline"]], ROWS, (0, 2))
    names = ["baseline", "teacher-clip-vit-b32", "teacher-vit-b16", "student-all"]
    assert [model.name for model in models] == [*names, *(f"{name}-seed2" for name in names)]
    assert models[-1].needs == ("teacher-clip-vit-b32-seed2", "teacher-vit-b16-seed2")
    done: set[str] = set()
    for model in models_of(ROWS, ROWS, (0, 1, 2)):
        assert done.issuperset(model.needs), model.name
        done.add(model.name)
    assert len(done) == 3 * len(ROWS)


def test_each_row_has_its_own_control() -> None:
    controls = {row.name: row.control for row in ROWS}
    assert controls["baseline"] is controls["images-vit-b16"] is controls["teacher-none"] is controls["student-none"] is None
    assert {controls[name] for name in ("teacher-vit-b16", "teacher-shuffled", "teacher-blank")} == {"teacher-none"}
    of_one = {"student-clip-vit-b32", "student-vit-b16", "student-shuffled", "student-blank"}
    assert {controls[name] for name in of_one} == {"student-none"}
    others = {name for name in controls if name.startswith("student")} - of_one
    assert {controls[name] for name in others} == {None}, "another loss, or several teachers, is a difference besides the images"


def test_unlabelled_texts_add_students_and_their_control() -> None:
    rows = rows_of(COLUMNS, has_more=True)
    more = {row.name: row for row in rows if row.more}
    kinds = ["clip-vit-b32", "vit-b16", "none", "shuffled", "blank"]
    assert list(more) == [f"student-{kind}-more" for kind in kinds]
    assert [row.control for row in more.values()] == [None if kind == "none" else "student-none-more" for kind in kinds]
    shown = {group: [row.name for row in found] for group, found in chosen_tables(("all",), rows).items()}
    assert shown == {"table1": TABLE_1, "table2": TABLE_2, "controls": CONTROLS, "unlabelled": ["baseline", *more]}
    assert [model.name for model in models_of([more["student-vit-b16-more"]], rows, (0,))] == ["teacher-vit-b16", "student-vit-b16-more"]
    assert {paper_accuracy(row, dataset) for row in more.values() for dataset in PAPER_DATASETS} == {None}


def test_the_paper_has_no_ensembles_and_no_folds() -> None:
    rows = [row for row in rows_of(COLUMNS, folds=(5,), ensembles=(3,)) if row.folds or row.members > 1]
    assert "student-clip-vit-b32-ensemble3" in {row.name for row in rows}
    assert {paper_accuracy(row, dataset) for row in rows for dataset in PAPER_DATASETS} == {None}


@pytest.mark.parametrize("name", ["unlabelled", "student-none-more"])
def test_rows_with_unlabelled_texts_need_the_texts(name: str) -> None:
    with pytest.raises(InputError, match="name the texts with --unlabelled"):
        shown(name)


@pytest.mark.parametrize(
    ("name", "alpha", "beta"),
    [
        ("student-vit-b16", 3.0, 1.0),
        ("student-none", 3.0, 1.0),
        ("student-all", 3.0, 1.0),
        ("student-vit-b16-ce", 3.0, 0.0),
        ("student-vit-b16-l2", 0.0, 1.0),
    ],
)
def test_a_students_loss_has_the_terms_of_its_row(name: str, alpha: float, beta: float, capsys: pytest.CaptureFixture[str]) -> None:
    weights = loss_weights(row_loss(DistillationSettings(), BY_NAME[name]))
    assert (weights.hard, weights.alpha, weights.beta, weights.temperature) == (1.0, alpha, beta, 8.0)
    tuned = DistillationSettings(alpha=0.7, beta=0.2, hard=0.5, temperature=4.0, embedding_loss="cosine")
    weights = loss_weights(row_loss(tuned, BY_NAME[name]))
    assert (weights.hard, weights.alpha, weights.beta) == (0.5, 0.7 * (alpha > 0), 0.2 * (beta > 0))
    assert weights.temperature == (4.0 if alpha else 8.0)
    assert weights.embedding_loss == ("cosine" if beta else "mse")
    assert capsys.readouterr().err == "", "settings of a term that is left out are left out too"


def test_students_of_teachers_without_images_predict_none(capsys: pytest.CaptureFixture[str]) -> None:
    contrastive = DistillationSettings(predict_image=2.0, embedding_loss="infonce")
    of_images = {row.name: row_loss(contrastive, row) for row in ROWS if row.command == "student"}
    predicts = {name: loss.predict_image for name, loss in of_images.items()}
    assert {name for name, weight in predicts.items() if not weight} == {"student-none", "student-blank"}
    assert {loss.embedding_loss for loss in of_images.values()} == {"infonce"}
    alone = replace(contrastive, beta=0.0)
    assert row_loss(alone, BY_NAME["student-none"]) == DistillationSettings(beta=0.0), "nothing is compared by infonce"
    assert loss_weights(row_loss(alone, BY_NAME["student-shuffled"])).embedding_loss == "infonce"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("hard", "preset", "ablations"), [(None, "paper", ("ce", "l2")), (0.0, "paper", ("ce",)), (None, "hinton", ()), (None, "lopez-paz", ())]
)
def test_soft_terms_that_can_stand_alone_get_students(hard: float | None, preset: Any, ablations: tuple[str, ...]) -> None:
    """Without labels, the distance of the embeddings alone says nothing about the classes."""
    loss = DistillationSettings(kd_preset=preset, hard=hard)
    assert ablations_of(loss_weights(loss)) == ablations
    for row in rows_of(("clip-demo",), ablations=ablations):
        if row.command == "student":
            weights = loss_weights(row_loss(loss, row))
            assert (weights.hard, bool(weights.alpha or weights.beta)) == (loss_weights(loss).hard, True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"seeds": 0}, "--seeds 0"),
        ({"seed": 2**31 - 2, "seeds": 3}, "0 to 2147483647"),
        ({"rows": ()}, "--rows"),
        ({"rows": ("table1", "table1")}, "name each once"),
        ({"columns": ("a", "a")}, "name each once"),
        ({"alpha": -1.0}, "--alpha -1"),
        ({"epochs": 0}, "--epochs 0"),
    ],
)
def test_flags_without_sense_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        options(**more)
    assert message in str(refused.value)


def test_the_papers_figures_are_those_of_its_tables() -> None:
    # arXiv 2309.15238, Table 1 (Student 2 and CLIP only on IMDB, ViT only on 20 Newsgroups) and Table 2 (l2 only on WikiNews).
    figures = [("baseline", "imdb", 0.919), ("student-clip-vit-b32", "imdb", 0.931), ("images-clip-vit-b32", "imdb", 0.549)]
    figures += [
        ("images-vit-b16", "20ng", 0.137),
        ("teacher-vit-b16", "cwi-news", 0.867),
        ("student-clip-vit-b32-l2", "cwi-wikinews", 0.843),
    ]
    figures += [("student-clip-vit-b32-ce", "20ng", 0.926)]
    for name, dataset, accuracy in figures:
        assert paper_accuracy(BY_NAME[name], dataset) == accuracy
    for name in (*CONTROLS[1:], "student-vit-b16-ce", "student-vit-b16-l2"):
        assert [paper_accuracy(BY_NAME[name], dataset) for dataset in PAPER_DATASETS] == [None] * 4, name


def test_the_papers_figures_are_shown_for_its_own_corpora_alone() -> None:
    whole = CorpusSettings()
    assert paper_dataset("20ng", whole) == "20ng"
    assert {paper_dataset(name, whole) for name in ("demo", "20ng.csv")} == {None}
    assert {paper_dataset("20ng", replace(whole, **more)) for more in ({"limit": 100}, {"split_by": "date"})} == {None}


def test_the_generators_text_vectors_have_rows_among_the_controls() -> None:
    rows = rows_of(COLUMNS, has_vectors=True)
    by_name = {row.name: row for row in rows}
    controls = [row.name for row in chosen_tables(("controls",), rows)["controls"]]
    assert controls == [*CONTROLS[:3], "teacher-text", "student-text", *CONTROLS[3:]]
    assert (by_name["teacher-text"].column, by_name["teacher-text"].control) == ("prompt-text", "teacher-none")
    assert by_name["student-text"].teachers == ("teacher-text",)
    assert {row.name: row.vectors for row in rows if row.vectors is not None} == {
        **{f"teacher-{column}": "teacher-text" for column in COLUMNS},
        **{f"student-{column}": "student-text" for column in COLUMNS},
    }
    assert [row for row in rows if "text" not in row.name] == list(ROWS)


def test_rows_of_absent_text_vectors_name_what_computes_them() -> None:
    with pytest.raises(InputError, match="--encoders prompt-text, which generates no image"):
        shown("student-text")


def test_every_teacher_may_have_folds_and_its_student_the_control_with_the_same() -> None:
    rows = rows_of(("clip-demo",), has_more=True, has_vectors=True, folds=(5,))
    by_name = {row.name: row for row in rows}
    students = ["student-clip-demo", "student-none", "student-text", "student-shuffled", "student-blank"]
    assert [row.name for row in chosen_tables(["folds"], rows)["folds"]] == ["baseline", *(f"{name}-folds5" for name in students)]
    student = by_name["student-clip-demo-folds5"]
    assert (student.control, student.vectors) == ("student-none-folds5", "student-text-folds5")
    assert by_name["student-clip-demo-folds5-more"].control == "student-none-folds5-more"
    models = [model.name for model in models_of([student], rows, [1])]
    assert models == [f"{name}-seed1" for name in ("teacher-clip-demo", "teacher-clip-demo-folds5", "student-clip-demo-folds5")]
    assert [row.name for row in chosen_tables(["all"], rows)["unlabelled"]][1:] == [
        *(f"{name}-more" for name in students),
        *(f"{name}-folds5-more" for name in students),
    ]
    with pytest.raises(InputError, match="give the number of folds with --folds"):
        shown("student-clip-vit-b32-folds5")
    with pytest.raises(InputError, match="give the number of folds with --folds"):
        shown("folds")


def test_an_ensemble_has_teachers_of_seeds_of_its_own_and_the_control_with_as_many() -> None:
    rows = rows_of(("clip-demo",), has_more=True, has_vectors=True, ensembles=(3,))
    by_name = {row.name: row for row in rows}
    students = ["student-clip-demo", "student-none", "student-text", "student-shuffled", "student-blank"]
    assert [row.name for row in chosen_tables(["ensemble"], rows)["ensemble"]] == ["baseline", *(f"{name}-ensemble3" for name in students)]
    student = by_name["student-clip-demo-ensemble3"]
    assert (student.control, student.vectors) == ("student-none-ensemble3", "student-text-ensemble3")
    assert by_name["student-clip-demo-ensemble3-more"].control == "student-none-ensemble3-more"
    models = models_of([student, by_name["teacher-none"]], rows, [0, 1])
    teachers = [["teacher-clip-demo", *(f"teacher-clip-demo-seed{seed}" for seed in more)] for more in ((1000, 2000), (1001, 2001))]
    teachers[1][0] += "-seed1"
    assert [model.name for model in models] == [
        *("teacher-clip-demo", "teacher-none", *teachers[0][1:], "student-clip-demo-ensemble3"),
        *("teacher-clip-demo-seed1", "teacher-none-seed1", *teachers[1][1:], "student-clip-demo-ensemble3-seed1"),
    ]
    assert [list(model.needs) for model in models if model.needs] == teachers
    for name in ("student-clip-vit-b32-ensemble2", "ensemble"):
        with pytest.raises(InputError, match="give the number of teachers with --ensemble"):
            shown(name)
