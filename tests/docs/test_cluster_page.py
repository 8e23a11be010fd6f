"""What docs/cluster.md says of Ray: its first commands run on a real one; the files for an autoscaler and for Kubernetes are such files."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from featurize.options import FeaturizeOptions
from lugpi_core.command_line import parse
from tests.support.pages import code_of, run, text_of

PAGE = "docs/cluster.md"


def configurations() -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text_of(PAGE), re.DOTALL)]


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
    jsonschema.validate(cluster, json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text()))
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
