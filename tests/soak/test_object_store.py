"""Two machines fill one bucket; they are killed and the server is stopped at any moment: no shard is wrong, none is missing at the end."""

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lugpi_core.remote.run import open_run
from lugpi_core.store.object_store import run_in_store
from lugpi_core.store.reader import ColumnReader
from tests.soak.bucket_worker import SPEC, fill, rows_of
from tests.support.checkout import Start
from tests.support.s3_server import S3Server


def test_kills_and_stops_lose_nothing(
    s3: S3Server, start: Start, tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    chance, ends = random.Random(0), Counter[str]()
    buckets = [s3.make_bucket() for _ in range(campaign(1, 12))]
    for bucket in buckets:
        address = f"s3://{bucket}/run"
        fill(tmp_path / bucket / "local", None)
        for _ in range(campaign(1, 12)):
            machines = [start("-m", "tests.soak.bucket_worker", address, tmp_path / bucket / name) for name in ("here", "there")]
            time.sleep(chance.uniform(1, 6))
            victim = chance.choice([*machines, s3])
            if isinstance(victim, S3Server):
                victim.stop()
                time.sleep(chance.uniform(0, 1))
                victim.start()
            else:
                victim.kill()
            for machine in machines:
                _, said = machine.communicate(timeout=120)
                assert machine.returncode in (0, 2, -9), said
                assert machine.returncode != 2 or "expected a store that answers" in said or "is writing" in said
                ends[f"status {machine.returncode}"] += 1
            ends["server stopped" if victim is s3 else "killed"] += 1
            whole = {name: data for name, data in s3.objects(bucket).items() if name.endswith(".h5") and "/shard-" in name}
            assert all(data == (tmp_path / bucket / "local" / "clip" / name.rsplit("/", 1)[1]).read_bytes() for name, data in whole.items())
        last = start("-m", "tests.soak.bucket_worker", address, tmp_path / bucket / "here")
        assert last.communicate(timeout=120)[1] == ""
        assert last.returncode == 0
        with run_in_store(Path(address), tmp_path / bucket / "reader", writes=False):
            reader = ColumnReader(open_run(Path(address), tmp_path / bucket / "reader") / "tokens", "clip")
            for shard in range(SPEC.shards):
                np.testing.assert_array_equal(reader.gather(range(2 * shard, 2 * shard + 2)), rows_of(shard))
    report(f"object store: {dict(ends)}")
