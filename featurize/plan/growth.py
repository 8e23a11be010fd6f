"""A store of a subset (``--subset``) that a larger one continues: its rows begin those of the larger one."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from featurize.options import FeaturizeSettings
from featurize.plan.images import ImagePlan
from featurize.plan.job import Job, StoreJob
from featurize.plan.prompt_text import TEXT_ENCODER, prompts_fingerprint
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import differences
from lugpi_core.store.manifest import ColumnSpec, components_of, is_empty, is_of_components, load_manifest
from lugpi_core.store.reader import columns_of

# Flags of a command that hold for all columns of tokens it fills: columns that differ in one are not filled by one command.
_OF_TEXT_VECTORS = ("token_dtype",)
_OF_ENCODERS = ("encoder_size", "encoder_layer", "pool", "decoder", *_OF_TEXT_VECTORS)


def outgrown(job: StoreJob) -> Mapping[str, ColumnSpec]:
    """Return the columns of a job's store that are of a smaller subset, whose rows begin those of the job, by name; none of another job.

    Nothing is touched. Columns of any other difference are not among them: ``refuse_other_images`` names what differs.

    Raises:
        InputError: the smaller subset is unfinished, the job does not fill all of its columns, or the store is in an object store.
    """
    if not isinstance(job, Job) or job.plan.subset is None:
        return {}
    ours, found, unfinished, smaller = {spec.name: spec for spec in job.every_column}, {}, [], 0
    specs = {name: load_manifest(job.store / name) for name in columns_of(job.store) if not is_empty(job.store / name)}
    for name, (spec, records) in specs.items():
        texts = texts_with_images(spec)
        if texts is None or not 0 < texts < job.plan.subset.texts:
            continue
        if _begins(spec, job.plan.first(texts), ours.get(name), job.numbering):
            found[name], smaller = spec, texts
            if len(records) < spec.shards:
                unfinished.append(name)
    if found:  # whose further images other programs would have to add
        foreign = {name: spec for name, (spec, _) in specs.items() if spec.made_by is None and name not in ours and name not in found}
        rows = next(iter(found.values())).rows
        _refuse_columns_of_other_commands(job, found | {name: spec for name, spec in foreign.items() if spec.rows == rows})
    if unfinished:
        raise InputError(
            got=f"--subset {job.plan.subset.texts} for {job.store / unfinished[0]}, begun with --subset {smaller} and unfinished",
            expected="a finished store to add images to",
            do=f"run the command with --subset {smaller} first, then this one",
        )
    if others := sorted(found.keys() - ours.keys()):
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


def texts_with_images(spec: ColumnSpec) -> int | None:
    """Return how many train texts have images in a column of a subset; None if it is of no subset. A column of images states it in its
    fingerprint, also where no command is recorded; one of text vectors only in the flags of its command."""
    generation = spec.fingerprint.get("generation")
    stated = generation.get("subset") if isinstance(generation, Mapping) else None
    texts = stated.get("texts") if isinstance(stated, Mapping) else (spec.made_by or {}).get("subset")
    return texts if isinstance(texts, int) else None


def rows_kept(job: StoreJob) -> int:
    """Return how many first rows of a job a smaller subset has already; 0 if it is not continued."""
    return next((spec.rows for spec in outgrown(job).values()), 0)


def _refuse_columns_of_other_commands(job: Job, found: Mapping[str, ColumnSpec]) -> None:
    """Raise InputError if columns of the smaller subset cannot be filled by the job's command, whichever encoders it names: components of
    other tokens, and tokens by other flags."""
    assert job.plan.subset is not None
    others = {name: found[name] for name in sorted(found.keys() - {spec.name for spec in job.every_column})}
    apart = {name: why for name, spec in others.items() if (why := _why_apart(spec, job))}
    if not apart:
        return
    # Components come last: what they are projected from may have to be added again, too.
    last = {name: (components_of(spec) or {}).get("components", 0) for name, spec in others.items()}
    again = list(dict.fromkeys(_command_of(others[name], job) for name in sorted(apart, key=last.__getitem__)))
    folders = " and ".join(str(job.store / name) for name in apart)
    together = _encoders([*job.every_column, *(spec for name, spec in others.items() if name not in apart)])
    encoders = "" if others.keys() == apart.keys() else f" with --encoders {' '.join(together)}"
    # Where latents are stored, a column that is added again costs no image.
    do = ", then ".join((f"remove the folder{'s' if len(apart) > 1 else ''} {folders}", f"run this command{encoders}", *again))
    named = ", ".join(f"{name} ({why})" for name, why in apart.items())
    smaller = texts_with_images(next(iter(found.values())))
    raise InputError(
        got=f"--subset {job.plan.subset.texts} for a store of --subset {smaller} that has {named}, too",
        expected="columns that one command adds images to",
        do=do,
    )


def _why_apart(spec: ColumnSpec, job: Job) -> str:
    """Return why the command of a job does not fill a column even if it names its encoder; nothing if it does."""
    if is_of_components(spec):
        return "components of other tokens"
    if spec.made_by is None:
        return "by no command of featurize"
    return "; ".join(differences(*({"flags": flags} for flags in _flags_of(spec, job))))


def _command_of(spec: ColumnSpec, job: Job) -> str:
    """Return what adds a column again: a command, or in what it differs from the job's."""
    if (reduced := components_of(spec)) is not None:
        components = reduced.get("components")
        return f"python -m featurize reduce --column {spec.name.removesuffix(f'-pca{components}')} --pca {components}"
    if spec.made_by is None:
        return f"add {spec.name} as before"
    then, now = _flags_of(spec, job)
    unlike = {f"--{name.replace('_', '-')}": value for name, value in then.items() if value != now[name]}
    given = [f"{flag} {value}" for flag, value in unlike.items() if value is not None]
    without = [f" without {flag}" for flag, value in unlike.items() if value is None]
    return " ".join(("once more with --encoders", *_encoders([spec]), *given)) + "".join(without)


def _flags_of(spec: ColumnSpec, job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the flags that decide a column beside images and encoder: of the command that began it, and of the job's. A flag that is
    younger than the column had its default."""
    names = _OF_ENCODERS if "encoder" in spec.fingerprint else _OF_TEXT_VECTORS if TEXT_ENCODER in spec.fingerprint else ()
    then, now = (
        {name: flags.get(name, getattr(FeaturizeSettings, name)) for name in names}
        for flags in (spec.made_by or {}, job.every_column[0].made_by or {})
    )
    return then, now


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
        if differences(larger, numbering["generation"]):
            return False  # no command adds images of other settings, so none is advised
        wanted = {**spec.fingerprint, "generation": larger}
    shape = (spec.what, spec.row_shape, spec.dtype)
    return ours is None or (not differences(wanted, ours.fingerprint) and shape == (ours.what, ours.row_shape, ours.dtype))
