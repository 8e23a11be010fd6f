"""Runs over own pictures, killed at random moments and continued: the same bytes as without a kill."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import transformers

from featurize.options import FeaturizeOptions
from featurize.run import featurize_command
from lugpi_core.store.reader import ColumnReader
from tests.soak import processes
from tests.support.own_pictures import file_of, picture, write_corpus

PICTURES = 60
transformers.logging.set_verbosity_error()  # imported here, not in every child


def _run(table: Path, run: Path) -> Callable[[], object]:
    how = {"split_column": "split", "images_from": "image", "device": "cpu", "batch_size": 2, "shard_rows": 16}
    options = FeaturizeOptions(dataset=str(table), encoders=("vit-demo",), run_dir=run, **how)
    return lambda: featurize_command(options)


def test_killed_runs_over_own_pictures_continue_to_the_same_bytes(
    tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    planned, kills, stores, chance = campaign(2, 60), 0, 0, random.Random(0)
    files = {f"{n}.png": file_of(picture(200 + n, 150, seed=n)) for n in range(PICTURES)}
    late = [f"{n}.png" for n in range(0, PICTURES, 10)]
    table = write_corpus(tmp_path, list(files), extra={name: data for name, data in files.items() if name not in late})
    assert processes.run(_run(table, tmp_path / "store-0")) == processes.DONE, "some pictures are missing"
    for name in late:
        (tmp_path / name).write_bytes(files[name])
    begun_s = time.monotonic()
    assert processes.run(_run(table, tmp_path / "whole")) == processes.DONE
    whole_s = time.monotonic() - begun_s
    expected = ColumnReader(tmp_path / "whole" / "tokens", "vit-demo").gather(np.arange(PICTURES))
    while stores == 0 or kills < planned:  # in the first store, missing pictures are filled in
        store, killed_here = tmp_path / f"store-{stores}", 0
        while True:
            pid = processes.start(_run(table, store))
            if processes.ended(pid, chance.uniform(0.2, 1.1) * whole_s):
                assert processes.wait(pid) == processes.DONE
                break
            killed_here += processes.kill(pid) == processes.KILLED
        found = ColumnReader(store / "tokens", "vit-demo")
        assert not found.flagged
        assert np.array_equal(found.gather(np.arange(PICTURES)), expected)
        kills, stores = kills + killed_here, stores + 1
    report(f"kills: {kills} over {stores} stores of own pictures, rows lost or wrong 0")
