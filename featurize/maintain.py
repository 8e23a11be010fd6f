"""``python -m featurize verify`` and ``info``: is a store complete and intact, and what is in it?"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featurize.encode.preprocessing import preprocessing_in_words
from featurize.options import FeaturizeOptions, InfoOptions, VerifyOptions
from featurize.run import featurize_command, plan_command
from lugpi_core.command_line import say
from lugpi_core.corpora.load import DATASETS
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import flat
from lugpi_core.store.example_table import EXAMPLES
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.reader import columns_of
from lugpi_core.store.sealed_file import read_sealed
from lugpi_core.store.verify import Finding, check_store, flags_of_the_maker, row_ranges, take_back


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What is missing, damaged or flagged in a store.

    Attributes:
        store: the store's folder.
        deep: whether every byte was read.
        findings: missing, damaged and flagged rows.
    """

    store: Path
    deep: bool
    findings: tuple[Finding, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def counts(self) -> str:
        """Return how many findings of each kind there are: ``1 missing, 2 damaged``."""
        kinds = [finding.kind for finding in self.findings]
        return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "complete and intact"

    def summary(self) -> str:
        """Return the findings for a person, a line each, and their counts."""
        hint = "" if self.deep or self.findings else "; --deep reads every byte"
        return "\n".join([*map(str, self.findings), f"{self.store}: {self.counts()}{hint}"])

    def to_json(self) -> dict[str, Any]:
        """Return the findings as a JSON value."""
        return {
            "store": str(self.store),
            "deep": self.deep,
            "complete": self.complete,
            "findings": [finding.record() for finding in self.findings],
        }


@dataclass(frozen=True, kw_only=True)
class ColumnInfo:
    """One column of a store.

    Attributes:
        rows, rows_final: rows that the column will have, and rows that are committed.
        row_shape, dtype: of one row.
        shards: files.
        bytes: of all committed shards.
        flagged: rows that failed, with the reason.
        fingerprint: everything that decides the content.
        license: of the images and tokens.
        notice: what a reader must know about them, or None.
        made_by: the flags of the featurize command that began the column, or None.
    """

    rows: int
    rows_final: int
    row_shape: tuple[int, ...]
    dtype: str
    shards: int
    bytes: int
    flagged: Mapping[str, str]
    fingerprint: Mapping[str, Any]
    license: str
    notice: str | None
    made_by: Mapping[str, Any] | None

    def summary_lines(self, name: str) -> list[str]:
        """Return shape, licence, failed rows and every field of the fingerprint, a line each."""
        shape = " × ".join(map(str, self.row_shape))
        lines = [
            f"{name}: {self.rows_final:,} of {self.rows:,} rows of {shape} {self.dtype}, {self.bytes / 1e6:,.1f} MB",
            f"  {self.license}",
        ]
        encoder = self.fingerprint.get("encoder")
        if isinstance(encoder, Mapping) and isinstance(encoder.get("preprocessing"), Mapping):
            lines.append(f"  images are read so: {preprocessing_in_words(encoder['preprocessing'])}")
        lines += [f"  FAILED: rows {row_ranges(map(int, self.flagged))}"] if self.flagged else []
        return lines + [f"  {field} = {value}" for field, value in flat(self.fingerprint)]


@dataclass(frozen=True, kw_only=True)
class ExampleInfo:
    """The table of examples: the corpus's name, its examples, and how many of their prompts were cut."""

    corpus: str | None
    examples: int
    prompts_cut: int


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What is in a store.

    Attributes:
        store: the store's folder.
        examples: the table of examples; None if there is none yet or it cannot be read.
        columns: by name.
        unreadable: by name, why a column cannot be read; ``examples.h5`` stands for the table of examples.
    """

    store: Path
    examples: ExampleInfo | None
    columns: Mapping[str, ColumnInfo]
    unreadable: Mapping[str, str]

    def summary(self) -> str:
        """Return what is in the store for a person."""
        table = self.examples
        counts = (
            f"{table.corpus} corpus, {table.examples} examples, {table.prompts_cut} prompts cut" if table else "no table of examples yet"
        )
        lines = [line for name, column in self.columns.items() for line in column.summary_lines(name)]
        return "\n".join([f"{self.store}: {counts}", *lines, *(f"cannot be read: {fault}" for fault in self.unreadable.values())])

    def to_json(self) -> dict[str, Any]:
        """Return the content as a JSON value."""
        unreadable = {name: fault for name, fault in self.unreadable.items() if name != EXAMPLES}
        return {
            "store": str(self.store),
            "complete": not unreadable,
            "examples": asdict(self.examples) if self.examples else {},
            "columns": {name: {**asdict(column), "row_shape": list(column.row_shape)} for name, column in self.columns.items()},
            "not_shown": unreadable,
        }


def verify(options: VerifyOptions) -> dict[str, Any]:
    """Report what is missing, damaged or flagged in a store; with ``repair``, compute it again. Returns the findings before and after."""
    before = verify_store(options.store, deep=options.deep or options.repair)
    say(before.summary())
    figures = {"command": "verify", **before.to_json()}
    if not options.repair or before.complete:
        return figures
    computed = _repair(before)
    after = verify_store(options.store, deep=True)
    for finding in after.findings:
        say(str(finding))
    say(f"{options.store}: after the repair {after.counts()}")
    left = [finding.record() for finding in after.findings]
    return {**figures, "complete": after.complete, "made_again": computed, "findings_left": left}


def info(options: InfoOptions) -> dict[str, Any]:
    """Report what is in a store."""
    content = store_info(options.store)
    say(content.summary())
    return {"command": "info", **content.to_json()}


def verify_store(store: Path, *, deep: bool = False) -> Verification:
    """Return what is missing, damaged or flagged in a store; nothing is changed.

    Args:
        store: its folder.
        deep: read every byte: each row and each file against its hash. Otherwise records, sizes and structure.

    Raises:
        InputError: there is no store.
    """
    return Verification(store=store, deep=deep, findings=tuple(check_store(store, deep=deep)))


def store_info(store: Path) -> StoreInfo:
    """Return what is in a store.

    Raises:
        InputError: there is no store.
    """
    names = columns_of(store)
    if not names:
        raise InputError(got=f"no token store in {store}", expected="one that featurize wrote", do="run python -m featurize first")
    columns, unreadable, examples = {}, {}, None
    for name in names:
        try:
            columns[name] = _column_info(store / name)
        except InputError as error:
            unreadable[name] = str(error)
    if (store / EXAMPLES).is_file():
        try:
            about, arrays = read_sealed(store / EXAMPLES)
            cut = int(arrays["prompt_cut"].sum())
            examples = ExampleInfo(corpus=about.get("corpus"), examples=len(arrays["drawing"]), prompts_cut=cut)
        except InputError as error:
            unreadable[EXAMPLES] = str(error)
    return StoreInfo(store=store, examples=examples, columns=columns, unreadable=unreadable)


def _repair(verification: Verification) -> list[dict[str, int]]:
    """Compute what was found with the commands that wrote it; return the rows that each computed, by stage."""
    commands = _commands_of(verification.store, verification.findings)
    for command in commands:
        plan_command(command)  # raises before anything is taken back
    for busy in take_back(verification.store, verification.findings):
        say(f"not repaired: {busy}")
    failed = frozenset(row for finding in verification.findings if finding.kind == "flagged" for row in finding.rows)
    return [featurize_command(command, retry=failed)["rows"] for command in commands]


def _commands_of(store: Path, findings: tuple[Finding, ...]) -> list[FeaturizeOptions]:
    """Return the featurize commands that compute what was found, each once.

    Raises:
        InputError: a damaged column was not written by featurize, or for a corpus that cannot be loaded by name.
    """
    ours = [name for name in columns_of(store) if flags_of_the_maker(store, name) is not None]
    # Rows that failed in a foreign column are left alone.
    affected = {finding.column for finding in findings if finding.column and (finding.kind != "flagged" or finding.column in ours)}
    columns = sorted(affected) or ours[:1]
    if any(finding.kind == "flagged" for finding in findings):  # a failed image is generated again for every column
        columns = sorted({*columns, *ours})
    commands: list[FeaturizeOptions] = []
    for column in columns:
        flags = flags_of_the_maker(store, column)
        if flags is None:
            raise InputError(
                got=f"{store / column}, which no featurize command wrote",
                expected="a column that featurize can compute again",
                do="get its files again from their source, or remove the folder",
            )
        if "data_dir" not in flags and flags.get("dataset") not in DATASETS:
            raise InputError(
                got=f"{store / column}, which lugpi.featurize wrote for a corpus in memory, {flags.get('dataset')}",
                expected="a corpus that the command can load",
                do="remove the files named above and call lugpi.featurize again with the same corpus and settings",
            )
        command = _options_of(flags, store.parent)
        if command not in commands:
            commands.append(command)
    return commands


def _options_of(flags: Mapping[str, Any], run_dir: Path) -> FeaturizeOptions:
    paths = {name: Path(flags[name]) for name in ("data_dir", "validation_file", "test_file", "unlabelled") if flags.get(name) is not None}
    try:
        return FeaturizeOptions(**{**flags, **paths, "encoders": tuple(flags["encoders"]), "run_dir": run_dir})
    except (TypeError, KeyError) as error:
        raise InputError(
            got=f"flags in a manifest of {run_dir} that this version does not know ({error})",
            expected="those of python -m featurize",
            do="run python -m featurize with the flags that the store was generated with",
        ) from None


def _column_info(folder: Path) -> ColumnInfo:
    spec, records = load_manifest(folder)
    return ColumnInfo(
        rows=spec.rows,
        rows_final=sum(record["rows"] for record in records.values()),
        row_shape=tuple(spec.row_shape),
        dtype=spec.dtype,
        shards=spec.shards,
        bytes=sum(record["bytes"] for record in records.values()),
        flagged={str(int(row) + record["first_row"]): why for record in records.values() for row, why in record["flagged"].items()},
        fingerprint=dict(spec.fingerprint),
        license=spec.license,
        notice=spec.notice,
        made_by=spec.made_by,
    )
