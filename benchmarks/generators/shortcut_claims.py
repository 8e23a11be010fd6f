"""Does ``--fidelity balanced`` keep what it is meant to: each claim with its bound, what was measured, whether it is met; and the table."""

from collections.abc import Mapping
from typing import Any

_MOST_WORK, _LEAST_FASTER = 0.5, 1.9
_SEED, _BALANCED = "another seed", "fidelity balanced"


def claims(generators: Mapping[str, Any], counted: Mapping[str, Any], timed: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the claims of ``balanced``; ``met`` is None where a figure is missing.

    Args:
        generators: figures by generator and case. Tokens must be nearer to the whole path's than halfway from another seed's to the same,
            and the probe's accuracy within one standard deviation of the whole path's over seeds.
        counted: of the preset ``fast`` by fidelity: at most half of the work.
        timed: of one image of Stable Diffusion 2, or None: at least 1.9 times as fast.
    """
    found: dict[str, Any] = {}
    for generator, figures in generators.items():
        if _BALANCED not in figures:
            continue
        between, cosine = figures[_SEED]["cosine"], figures[_BALANCED]["cosine"]
        bound = round(between + (1 - between) / 2, 5)
        found[f"{generator}: cosine"] = {"at_least": bound, "measured": cosine, "met": cosine >= bound}
        probes, probe = figures["probe_of_seeds"], figures[_BALANCED]["probe"]
        apart = None if probes is None or probe is None else round(abs(probe - probes["mean"]), 4)
        most = None if probes is None else probes["sd"]
        met = None if apart is None or most is None else apart <= most
        found[f"{generator}: probe, apart from the mean of the seeds"] = {"at_most": most, "measured": apart, "met": met}
    share = counted["balanced"]["of_high"]
    found["fast: work"] = {"at_most": _MOST_WORK, "measured": share, "met": share <= _MOST_WORK}
    faster = None if timed is None else timed["times_faster"]["balanced"]
    found["Stable Diffusion 2: times faster"] = {
        "at_least": _LEAST_FASTER,
        "measured": faster,
        "met": None if faster is None else faster >= _LEAST_FASTER,
    }
    return found


def table(figures: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table in docs/benchmarks.md, of the figures of one generator."""
    seeds = figures["probe_of_seeds"]
    lines = [
        "| case | rows, of which reuse | GFLOP | times faster | cosine (centred) | probe | teacher |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, case in figures.items():
        if "gflop" not in case:
            continue
        rows = f"{case['rows']}, {case['reused_rows']}" if case["reused_rows"] else str(case["rows"])
        near = f"{case['cosine']:.3f} ({case['centred_cosine']:.3f})" if "cosine" in case else ""
        probe = "" if case["probe"] is None else f"{case['probe']:.3f}"
        teacher = f"{case['teacher']['mean']:.3f} ± {case['teacher']['sd']:.3f}" if "teacher" in case else ""
        lines.append(f"| {name} | {rows} | {case['gflop']:.3f} | {case['times_faster']:.2f} | {near} | {probe} | {teacher} |")
    if seeds is not None:
        lines.append(f"| mean of the whole path's seeds |  |  |  |  | {seeds['mean']:.3f} ± {seeds['sd']:.3f} |  |")
    return lines
