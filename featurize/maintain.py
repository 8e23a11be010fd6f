"""``python -m featurize verify`` and ``info``: what of a store holds, and what is in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurize.options import FeaturizeOptions, InfoOptions, VerifyOptions
from featurize.run import featurize_command, plan_command
from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import flat
from lugpi_core.store.example_table import EXAMPLES
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.reader import columns_of
from lugpi_core.store.sealed_file import read_sealed
from lugpi_core.store.verify import Finding, check_store, flags_of_the_maker, shown_rows, take_back


def verify(options: VerifyOptions) -> dict[str, Any]:
    """Name what does not hold in a store; with ``repair`` make it again. Figures: the findings before and after."""
    deep = options.deep or options.repair
    findings = _found(options)
    say(f"{options.store}: {_summary(findings)}" + ("" if deep or findings else "; --deep reads every byte"))
    figures = {
        "command": "verify",
        "store": str(options.store),
        "deep": deep,
        "complete": not findings,
        "findings": [finding.record() for finding in findings],
    }
    if not (options.repair and findings):
        return figures
    runs = _runs(options.store, findings)
    for run in runs:
        plan_command(run)  # raises before anything is taken back
    for busy in take_back(options.store, findings):
        say(f"left as it is: {busy}")
    failed = frozenset(row for finding in findings if finding.kind == "flagged" for row in finding.rows)
    made = [featurize_command(run, retry=failed)["rows"] for run in runs]
    left = _found(options)
    say(f"{options.store}: after the repair {_summary(left)}")
    return {**figures, "complete": not left, "made_again": made, "findings_left": [finding.record() for finding in left]}


def info(options: InfoOptions) -> dict[str, Any]:
    """Show what is in a store."""
    store = options.store
    names = columns_of(store)
    if not names:
        raise InputError(got=f"no token store in {store}", expected="one that featurize made", do="run python -m featurize first")
    columns, faults = {}, {}
    for name in names:
        try:
            columns[name] = _column_info(store / name)
        except InputError as error:
            faults[name] = str(error)
    examples = _example_info(store)
    say(f"{store}: " + (", ".join(f"{value} {name}" for name, value in examples.items()) if examples else "no table of examples yet"))
    for name, column in columns.items():
        shape = " × ".join(map(str, column["row_shape"]))
        say(f"{name}: {column['rows_final']:,} of {column['rows']:,} rows of {shape} {column['dtype']}, {column['bytes'] / 1e6:,.1f} MB")
        say(f"  {column['license']}")
        if column["flagged"]:
            say(f"  FAILED: rows {shown_rows(map(int, column['flagged']))}")
        for field, value in flat(column["fingerprint"]):
            say(f"  {field} = {value}")
    for fault in faults.values():
        say(f"not shown: {fault}")
    return {"command": "info", "store": str(store), "complete": not faults, "examples": examples, "columns": columns, "not_shown": faults}


def _found(options: VerifyOptions) -> list[Finding]:
    findings = check_store(options.store, deep=options.deep or options.repair)
    for finding in findings:
        say(str(finding))
    return findings


def _summary(findings: list[Finding]) -> str:
    kinds = [finding.kind for finding in findings]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "everything holds"


def _runs(store: Path, findings: list[Finding]) -> list[FeaturizeOptions]:
    """Return the featurize commands that make what does not hold, without duplicates.

    Raises:
        InputError: a column was not made by featurize, so nobody here can make its rows.
    """
    ours = [name for name in columns_of(store) if flags_of_the_maker(store, name) is not None]
    # A row that failed in a column that somebody brought is their affair.
    found = {finding.column for finding in findings if finding.column and (finding.kind != "flagged" or finding.column in ours)}
    columns = sorted(found) or ours[:1]
    if any(finding.kind == "flagged" for finding in findings):  # a picture that failed is drawn anew for every column
        columns = sorted({*columns, *ours})
    runs: list[FeaturizeOptions] = []
    for column in columns:
        flags = flags_of_the_maker(store, column)
        if flags is None:
            raise InputError(
                got=f"{store / column}, which no featurize command made",
                expected="a column that can be made again",
                do="get its files again from where they came, or remove the folder",
            )
        run = _options(flags, store.parent)
        if run not in runs:
            runs.append(run)
    return runs


def _options(flags: Mapping[str, Any], run_dir: Path) -> FeaturizeOptions:
    paths = {name: Path(flags[name]) for name in ("data_dir", "validation_file", "test_file", "unlabelled") if flags.get(name) is not None}
    try:
        return FeaturizeOptions(**{**flags, **paths, "encoders": tuple(flags["encoders"]), "run_dir": run_dir})
    except (TypeError, KeyError) as error:
        raise InputError(
            got=f"flags in a manifest of {run_dir} that this version does not take ({error})",
            expected="those of python -m featurize",
            do="run python -m featurize by hand with the flags of the store",
        ) from None


def _column_info(folder: Path) -> dict[str, Any]:
    spec, records = load_manifest(folder)
    return {
        "rows": spec.rows,
        "rows_final": sum(record["rows"] for record in records.values()),
        "row_shape": list(spec.row_shape),
        "dtype": spec.dtype,
        "shards": spec.shards,
        "bytes": sum(record["bytes"] for record in records.values()),
        "flagged": {str(int(row) + record["first_row"]): why for record in records.values() for row, why in record["flagged"].items()},
        "fingerprint": dict(spec.fingerprint),
        "license": spec.license,
        "notice": spec.notice,
        "made_by": spec.made_by,
    }


def _example_info(store: Path) -> dict[str, Any]:
    if not (store / EXAMPLES).is_file():
        return {}
    try:
        about, arrays = read_sealed(store / EXAMPLES)
    except InputError as error:
        say(f"not shown: {error}")
        return {}
    return {"corpus": about.get("corpus"), "examples": len(arrays["drawing"]), "prompts_cut": int(arrays["prompt_cut"].sum())}
