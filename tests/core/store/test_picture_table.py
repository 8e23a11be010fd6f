"""pictures.h5: which picture each row of a store is."""

from pathlib import Path

from lugpi_core.store.picture_table import (
    PICTURES,
    PictureTable,
    StoredPicture,
    add_faults,
    name_to_store,
    read_picture_table,
    write_picture_table,
)

TABLE = PictureTable(
    fingerprint="f" * 32,
    rows=(
        StoredPicture(name="a/ü.png", example="row/0", place=0, digest="0" * 32),
        StoredPicture(name="", example="row/1", place=0, digest="", fault="no picture"),
        StoredPicture(name="b.png", example="row/1", place=1, digest="1" * 32, fault="damaged picture (cut)"),
    ),
)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_picture_table(tmp_path) is None
    write_picture_table(tmp_path, TABLE)
    assert read_picture_table(tmp_path) == TABLE
    before = (tmp_path / PICTURES).stat().st_ino
    write_picture_table(tmp_path, TABLE)
    assert (tmp_path / PICTURES).stat().st_ino == before, "it is not written again"


def test_a_damaged_table_is_none(tmp_path: Path) -> None:
    write_picture_table(tmp_path, TABLE)
    data = bytearray((tmp_path / PICTURES).read_bytes())
    data[len(data) - 100] ^= 1
    (tmp_path / PICTURES).write_bytes(data)
    assert read_picture_table(tmp_path) is None


def test_faults_are_added(tmp_path: Path) -> None:
    write_picture_table(tmp_path, TABLE)
    add_faults(tmp_path, {0: "damaged picture"})
    table = read_picture_table(tmp_path)
    assert table is not None
    assert [picture.fault for picture in table.rows] == ["damaged picture", "no picture", "damaged picture (cut)"]
    assert table.fingerprint == TABLE.fingerprint


def test_the_end_of_a_long_name_is_kept() -> None:
    assert name_to_store("x" * 300 + "/a.png") == "x" * 194 + "/a.png"
    assert name_to_store("ü" * 300 + ".png") == "ü" * 98 + ".png"
    assert name_to_store("\ud800.png") == "\\ud800.png"
