"""What docs/cluster.md says of arrays, ssh and Ray: commands run in local processes and, in ``make soak``, on a real Ray, SLURM's variables
set by hand; the files for an autoscaler and for Kubernetes are such files."""

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from featurize.options import FeaturizeOptions
from lugpi_core.command_line import parse
from tests.support.pages import code_of, run, text_of

PAGE = "docs/cluster.md"


def configurations() -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text_of(PAGE), re.DOTALL)]


_DEMO = ["--dataset", "demo", "--generator", "demo", "--encoders", "clip-demo", "--limit", "24", "--shard-rows", "4"]


def _of_demo(command: str) -> list[str]:
    """Return the words of a command on 20ng as one on a few texts of the demo."""
    words = shlex.split(command)
    place = words.index("--dataset")
    return [*words[:place], *_DEMO, *words[place + 2 :]]


@pytest.mark.filterwarnings("ignore:.* has no (train|validation|test) example of", "ignore:--limit leaves no train example")
def test_the_tasks_of_an_array_fill_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (task,) = re.findall(r"^srun (python -m featurize .*)$", text_of(PAGE), re.MULTILINE)
    missing = next(code.text for code in code_of(PAGE) if "--parts 20" in code.text)
    assert run(_of_demo(task.replace("$SLURM_ARRAY_TASK_ID", "3"))) == 0
    capfd.readouterr()
    assert run([*shlex.split(missing.replace("20ng", "demo")), "--limit", "24"]) == 0
    assert not capfd.readouterr().out.strip(), "a part that is done helps the others"


def test_every_machine_has_a_part_of_its_own() -> None:
    parts = re.findall(r"^ssh node\d '.*(python -m featurize .*)' &$", text_of(PAGE), re.MULTILINE)
    assert [parse(FeaturizeOptions, shlex.split(part)[3:], prog="featurize").part for part in parts] == ["0/2", "1/2"]


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:--limit leaves no train example")
def test_the_commands_of_one_machine_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for code in [code for code in code_of(PAGE) if "--ray local" in code.text]:
        assert run([ray_address if word == "local" else word for word in code.words]) == 0, code
    figures = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    assert figures[0]["complete"]
    assert len(figures[1]["trained"]) == 2


def test_the_configuration_of_an_autoscaler_is_one() -> None:
    (cluster,) = [each for each in configurations() if "cluster_name" in each]
    found = find_spec("ray")  # imported here, before lugpi sets its variables, it would print to stdout in other tests
    assert found is not None
    assert found.origin is not None
    jsonschema.validate(cluster, json.loads((Path(found.origin).parent / "autoscaler" / "ray-schema.json").read_text()))
    (command,) = re.findall(r'ray exec cluster.yaml "cd \S+ && python -m featurize (.*)"', text_of(PAGE))
    options = parse(FeaturizeOptions, shlex.split(command), prog="featurize")
    assert (
        options.ray_actors
        <= cluster["available_node_types"]["gpu"]["max_workers"] * cluster["available_node_types"]["gpu"]["resources"]["GPU"]
    )


def test_the_job_of_kuberay_is_one() -> None:
    (job,) = [each for each in configurations() if "kind" in each]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    options = parse(FeaturizeOptions, shlex.split(job["spec"]["entrypoint"])[3:], prog="featurize")
    (workers,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert options.ray_actors <= workers["maxReplicas"]
    for group in (workers, job["spec"]["rayClusterSpec"]["headGroupSpec"]):
        (container,) = group["template"]["spec"]["containers"]
        assert container["workingDir"] == "/shared", "the driver and the actors work in the same folder"
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/shared"}
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in group["template"]["spec"]["volumes"]}
