"""A store of a subset (``--subset``) that a larger one continues: its rows begin those of the larger one."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from featurize.plan.images import ImagePlan
from featurize.plan.job import Job, StoreJob
from featurize.plan.prompt_text import prompts_fingerprint
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import differences
from lugpi_core.store.manifest import ColumnSpec, is_empty, load_manifest
from lugpi_core.store.reader import columns_of


def outgrown(job: StoreJob) -> Mapping[str, ColumnSpec]:
    """Return the columns of a job's store that are of a smaller subset, whose rows begin those of the job, by name; none of another job.

    Nothing is touched. Columns of any other difference are not among them: ``refuse_other_images`` names what differs.

    Raises:
        InputError: the smaller subset is unfinished, the job does not fill all of its columns, or the store is in an object store.
    """
    if not isinstance(job, Job) or job.plan.subset is None:
        return {}
    ours, found, smaller = {spec.name: spec for spec in job.every_column}, {}, 0
    specs = {name: load_manifest(job.store / name) for name in columns_of(job.store) if not is_empty(job.store / name)}
    for name, (spec, records) in specs.items():
        texts = (spec.made_by or {}).get("subset")
        if not isinstance(texts, int) or not 0 < texts < job.plan.subset.texts:
            continue
        if _begins(spec, job.plan.first(texts), ours.get(name), job.numbering):
            if len(records) < spec.shards:
                raise InputError(
                    got=f"--subset {job.plan.subset.texts} for {job.store / name}, begun with --subset {texts} and unfinished",
                    expected="a finished store to add images to",
                    do=f"run the command with --subset {texts} first, then this one",
                )
            found[name], smaller = spec, texts
    if found and (others := sorted(found.keys() - ours.keys())):
        raise InputError(
            got=f"--subset {job.plan.subset.texts} for a store of --subset {smaller} that has {', '.join(others)}, too",
            expected="more images in all columns of the store",
            do=f"name all of its encoders: --encoders {' '.join(_encoders([*found.values(), *job.every_column]))}",
        )
    if found and job.mirror is not None:
        raise InputError(
            got=f"--subset {job.plan.subset.texts} for a store of --subset {smaller} in an object store",
            expected="a store on a disk: shards are written anew",
            do="give another --run-dir, or a local one that has a copy of the store",
        )
    return found


def rows_kept(job: StoreJob) -> int:
    """Return how many first rows of a job a smaller subset has already; 0 if it is not continued."""
    return next((spec.rows for spec in outgrown(job).values()), 0)


def _encoders(specs: Sequence[ColumnSpec]) -> list[str]:
    """Return the encoders that the commands named which began some columns, each once."""
    return list(dict.fromkeys(chain.from_iterable((spec.made_by or {}).get("encoders", ()) for spec in specs)))


def _begins(spec: ColumnSpec, smaller: ImagePlan, ours: ColumnSpec | None, numbering: Mapping[str, Any]) -> bool:
    """Whether a column has the images of a smaller plan, and differs from the job's in which these are alone."""
    if spec.rows != len(smaller):
        return False
    generation = spec.fingerprint.get("generation")
    if not isinstance(generation, Mapping):
        if spec.fingerprint.get("prompts") != prompts_fingerprint(smaller):
            return False
        wanted = {**spec.fingerprint, "prompts": numbering.get("prompts")}
    elif generation.get("drawings") != smaller.fingerprint():
        return False
    else:
        larger = {**generation, **{name: numbering["generation"].get(name) for name in ("drawings", "subset")}}
        wanted = {**spec.fingerprint, "generation": larger}
    shape = (spec.what, spec.row_shape, spec.dtype)
    return ours is None or (not differences(wanted, ours.fingerprint) and shape == (ours.what, ours.row_shape, ours.dtype))
