"""``python -m featurize verify``: is a store complete and intact? With ``--repair``, what is not is computed again. Also ``plan``,
``missing`` and ``merge``, for engines that hand out shards: they load no model."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featurize.options import FeaturizeOptions, FeaturizeSettings, MergeOptions, MissingOptions, PlanOptions, VerifyOptions
from featurize.plan.parts import WHOLE, Part, part_of_environment, part_of_text
from featurize.run import featurize_command, fill_store, plan_command, plan_in_memory
from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import DATASETS
from lugpi_core.errors import InputError, number_of
from lugpi_core.fields import part_of, require_type
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.store.example_table import EXAMPLES, read_example_table
from lugpi_core.store.layout import BASIS
from lugpi_core.store.manifest import MANIFEST, merge_records
from lugpi_core.store.object_store import mirror_of
from lugpi_core.store.reader import columns_of
from lugpi_core.store.store_progress import StoreProgress, store_progress
from lugpi_core.store.verify import Finding, check_store, flags_of_the_maker, row_ranges, take_back
from lugpi_core.store.virtual_view import view_is_current, write_view


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What is missing, damaged or flagged in a store.

    Attributes:
        store: the store's folder.
        deep: whether every byte was read.
        findings: missing, damaged and flagged rows.
        part: whose shards were looked at.
    """

    store: Path
    deep: bool
    findings: tuple[Finding, ...]
    part: Part = WHOLE

    @property
    def complete(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def counts(self) -> str:
        """Return how many files and rows were found: ``1 file missing, 2 files damaged, 3 rows flagged in 2 files``."""
        found: list[str] = []
        for kind in dict.fromkeys(finding.kind for finding in self.findings):
            of_kind = [finding for finding in self.findings if finding.kind == kind]
            files = number_of(len(of_kind), "file{s}")
            rows = number_of(sum(len(finding.rows) for finding in of_kind), "row{s}")
            found.append(f"{rows} flagged in {files}" if kind == "flagged" else f"{files} {kind}")
        return ", ".join(found) or "complete and intact"

    def summary(self) -> str:
        """Return the findings for a person, a line each, and their counts."""
        hint = "" if self.deep or self.findings else "; --deep reads every byte"
        part = "" if self.part == WHOLE else f"part {self.part} of "
        return "\n".join([*map(str, self.findings), f"{part}{self.store}: {self.counts()}{hint}"])

    def to_json(self) -> dict[str, Any]:
        """Return the findings as a JSON value."""
        return {
            "store": str(self.store),
            "deep": self.deep,
            "complete": self.complete,
            "findings": [finding.record() for finding in self.findings],
            **({} if self.part == WHOLE else {"part": str(self.part)}),
        }


def verify(options: VerifyOptions) -> dict[str, Any]:
    """Report what is missing, damaged or flagged in a store; with ``repair``, compute it again. Returns the findings before and after."""
    part = part_of_environment(os.environ)[0] if options.part is None else part_of_text(options.part)
    before = _verify(options.store, deep=options.deep or options.repair, part=part)
    say(before.summary())
    figures = {"command": "verify", **before.to_json()}
    if not options.repair or before.complete:
        return figures
    made_by = [_command_of(before.store, column, flags) for column, flags in _makers(before)]
    commands = [replace(command, part=str(part)) for command in made_by]
    for command in commands:
        plan_command(command)  # raises before anything is taken back
    failed = _take_back(before)
    computed = [featurize_command(command, retry=failed)["rows"] for command in commands]
    after = _verify(options.store, deep=True, part=part)
    for finding in after.findings:
        say(str(finding))
    say(f"{options.store}: after the repair {after.counts()}")
    left = [finding.record() for finding in after.findings]
    return {**figures, "complete": after.complete, "made_again": computed, "findings_left": left}


def verify_store(store: str | Path, *, deep: bool = False) -> Verification:
    """Return what is missing, damaged or flagged in a store; nothing is changed.

    Args:
        store: its folder.
        deep: read every byte: each row and each file against its hash. Otherwise records, sizes and structure.

    Raises:
        InputError: there is no store.
    """
    return _verify(Path(store), deep=deep, part=WHOLE)


def _verify(store: Path, *, deep: bool, part: Part) -> Verification:
    return Verification(store=store, deep=deep, findings=tuple(check_store(store, deep=deep, shards=part)), part=part)


def repair_store(store: str | Path, corpus: Corpus) -> Verification:
    """Compute damaged, missing and failed rows again and no others, as ``verify --repair`` does; return what is found afterwards.

    Args:
        store: its folder.
        corpus: the one that the store was filled for, from memory or from a file. The settings are those that it was filled with.

    Raises:
        InputError: there is no store, or it is another corpus's; a damaged column was not written by featurize; or as ``featurize``.
    """
    require_type("corpus", corpus, Corpus)
    prepare_libraries()
    before = verify_store(store, deep=True)
    if EXAMPLES not in {finding.place for finding in before.findings}:
        read_example_table(before.store, corpus)
    jobs = []
    for _, flags in _makers(before):
        settings = part_of(_options_of(flags, before.store.parent), FeaturizeSettings)
        jobs.append(plan_in_memory(corpus, before.store, settings=settings, flags=flags))
    failed = _take_back(before)
    for job in jobs:
        fill_store(corpus, job, retry=failed)
    return verify_store(before.store, deep=True)


def _take_back(verification: Verification) -> frozenset[int]:
    """Reopen the shards of what was found; return the images that failed."""
    for busy in take_back(verification.store, verification.findings):
        say(f"not repaired: {busy}")
    return frozenset(row for finding in verification.findings if finding.kind == "flagged" for row in finding.rows)


def _makers(verification: Verification) -> list[tuple[str, dict[str, Any]]]:
    """Return the flags of the runs that compute what was found, each once, with a column of each.

    Raises:
        InputError: a damaged column was not written by featurize.
    """
    store, findings = verification.store, verification.findings
    ours = [name for name in columns_of(store) if flags_of_the_maker(store, name) is not None]
    # Rows that failed in a foreign column are left alone.
    affected = {finding.column for finding in findings if finding.column and (finding.kind != "flagged" or finding.column in ours)}
    columns = sorted(affected) or ours[:1]
    if any(finding.kind == "flagged" for finding in findings):  # a failed image is generated again for every column
        columns = sorted({*columns, *ours})
    makers: list[tuple[str, dict[str, Any]]] = []
    for column in columns:
        flags = flags_of_the_maker(store, column)
        if flags is None:
            if (store / column / BASIS).exists():
                raise InputError(
                    got=f"{store / column}, components of another column's tokens",
                    expected="a column that a generator and an encoder compute",
                    do="run python -m featurize reduce again: it computes the damaged rows, and only those",
                )
            raise InputError(
                got=f"{store / column}, which no featurize command wrote",
                expected="a column that featurize can compute again",
                do="get its files again from their source, or remove the folder",
            )
        if flags not in [known for _, known in makers]:
            makers.append((column, flags))
    return makers


def _command_of(store: Path, column: str, flags: Mapping[str, Any]) -> FeaturizeOptions:
    """Return the command with some flags.

    Raises:
        InputError: they are for a corpus that cannot be loaded by name, or not those of this version.
    """
    if "data_dir" not in flags and flags.get("dataset") not in DATASETS:
        raise InputError(
            got=f"{store / column}, which lugpi.featurize wrote for a corpus in memory, {flags.get('dataset')}",
            expected="a corpus that the command can load",
            do="call lugpi.repair_store(store, corpus) with the same corpus",
        )
    return _options_of(flags, store.parent)


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


def plan(options: PlanOptions) -> dict[str, Any]:
    """Return how many shards a run has, which are missing, and the hours that they take one process."""
    from featurize.plan.growth import outgrown
    from featurize.plan.job import refuse_other_images

    _, job = plan_command(options)
    refuse_other_images(job, but=(smaller := outgrown(job)))
    first = job.every_column[0]
    progress = store_progress(job.store, [spec.name for spec in job.every_column], shards=first.shards)
    assert progress is not None
    if smaller:  # whose rows fill the first shards
        full = next(iter(smaller.values())).rows // first.shard_rows
        progress = replace(progress, missing=tuple(range(full, first.shards)), final=dict.fromkeys(progress.final, full))
    say(progress.summary())
    return {"command": "plan", "store": str(job.store), "rows": first.rows, "shard_rows": first.shard_rows, **_figures(progress)}


def missing(options: MissingOptions) -> str:
    """Return the missing shards, or the parts that lack some, in the form that was asked for."""
    progress = _progress(options.store)
    numbers: Iterable[int] = progress.missing
    if options.parts is not None:
        numbers = sorted({shard % options.parts for shard in progress.missing})
    say(f"{number_of(len(progress.missing), 'shard{s}')} of {progress.shards:,} missing")
    if options.format == "json":
        return json.dumps({"command": "missing", "store": str(options.store), "numbers": list(numbers)})
    return "\n".join(map(str, numbers)) if options.format == "lines" else row_ranges(numbers).replace(" ", "")


def merge(options: MergeOptions) -> dict[str, Any]:
    """Write the records of all shards into the manifests and, where no shard is missing, the view."""
    progress = _progress(options.store)
    for name in progress.final:
        if (options.store / name / MANIFEST).is_file():
            merge_records(options.store / name)
    if not progress.missing and not view_is_current(options.store):
        write_view(options.store)
    if mirror := mirror_of(options.store):
        mirror.finish()
    say(progress.summary())
    return {"command": "merge", "store": str(options.store), "complete": progress.complete, **_figures(progress)}


def _progress(store: Path) -> StoreProgress:
    progress = store_progress(store)
    if progress is None:
        raise InputError(got=f"no token store in {store}", expected="one that featurize has begun", do="run python -m featurize first")
    return progress


def _figures(progress: StoreProgress) -> dict[str, Any]:
    hours = 0.0 if not progress.missing else None if progress.seconds is None else len(progress.missing) * progress.seconds / 3600
    return {
        "shards": progress.shards,
        "missing": len(progress.missing),
        "missing_shards": row_ranges(progress.missing).replace(" ", ""),
        "final": progress.final,
        "failed_rows": progress.failed,
        "seconds_per_shard": progress.seconds,
        "hours": hours,
    }
