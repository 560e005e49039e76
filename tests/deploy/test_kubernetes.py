"""deploy/helm, deploy/kserve and deploy/cloud-init: helm takes the chart, Kubernetes' schemas what comes out of it, and
the server the command that stands in it.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jserve.commands.options import parse
from tests.deploy.programs import DEPLOY, ROOT, program, run

CHART = DEPLOY / "helm" / "jserve"
VALUES = sorted((DEPLOY / "helm" / "values").glob("*.yaml"))
KIND_OF = {
    "cpu": {"Deployment", "Service"},
    "gpu": {"Deployment", "Service", "Ingress", "PodDisruptionBudget", "ServiceMonitor"},
    "scaled": {"Deployment", "Service", "ServiceMonitor", "ScaledObject"},
}
OF_OPERATORS = {"ServiceMonitor", "ScaledObject"}
"""Kinds of which Kubernetes itself has no schema."""
pytestmark = pytest.mark.deploy


def rendered(values: Path, *options: str) -> list[dict[str, Any]]:
    text = run(program("helm"), "template", "llm", str(CHART), "-f", str(values), *options)
    return [each for each in yaml.safe_load_all(text) if each is not None]


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_helm_finds_nothing(values: Path) -> None:
    output = run(program("helm"), "lint", "--strict", str(CHART), "-f", str(values))
    assert "0 chart(s) failed" in output
    assert "WARNING" not in output


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_what_is_rendered_is_what_kubernetes_takes(values: Path, tmp_path: Path) -> None:
    manifests = rendered(values)
    assert {each["kind"] for each in manifests} == KIND_OF[values.stem]
    file = tmp_path / "manifests.yaml"
    file.write_text(yaml.safe_dump_all(each for each in manifests if each["kind"] not in OF_OPERATORS))
    output = run(program("kubernetes-validate"), "--strict", str(file))
    assert output.count("passed for resource") == len(manifests) - len(OF_OPERATORS & KIND_OF[values.stem])


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_the_server_takes_the_command_of_the_chart(values: Path, tmp_path: Path) -> None:
    (tmp_path / "api-keys").write_text("sk-one\n")
    (deployment,) = [each for each in rendered(values) if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    argv = [word.replace("/run/keys", str(tmp_path)) for word in container["args"]]
    config, settings = parse(argv)
    wanted = yaml.safe_load(values.read_text())
    assert config.model == f"/models/{wanted['model']['path']}"
    assert settings.needs_key == ("keys" in wanted)
    assert (config.tensor_parallel_size or 1) == max(1, wanted.get("gpus", 0))
    assert settings.shutdown_timeout_s < pod["terminationGracePeriodSeconds"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    limits = container["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == wanted.get("gpus")
    assert "memory" in limits
    assert all(container[probe]["httpGet"]["path"] in ("/ready", "/health") for probe in container if "Probe" in probe)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("model.path=", "minLength"),
        ("replicas=-1", "minimum"),
        ("colour=red", "colour"),
        ("storage.existingClaim=x,replicas=2", "maximum"),
        ("model.hostPath=,model.existingClaim=", "model"),
    ],
)
def test_values_that_are_wrong_are_refused_by_name(change: str, text: str) -> None:
    command = [program("helm"), "template", "llm", str(CHART), "-f", str(VALUES[0]), "--set", change]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode != 0
    assert text in done.stderr


def test_storage_belongs_to_one_server_at_a_time() -> None:
    (deployment,) = [
        each for each in rendered(VALUES[0], "--set", "storage.existingClaim=x") if each["kind"] == "Deployment"
    ]
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert "--storage-dir=/storage" in deployment["spec"]["template"]["spec"]["containers"][0]["args"]


def test_the_schema_knows_every_value_and_is_one() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values.keys() <= schema["properties"].keys()
    for name, value in values.items():
        if isinstance(value, dict) and "properties" in schema["properties"][name]:
            assert value.keys() == schema["properties"][name]["properties"].keys(), name


def test_the_runtime_of_kserve_starts_a_server() -> None:
    runtime, service = yaml.safe_load_all((DEPLOY / "kserve" / "servingruntime.yaml").read_text())
    (container,) = runtime["spec"]["containers"]
    config, settings = parse([word.replace("{{.Name}}", service["metadata"]["name"]) for word in container["args"]])
    assert (config.model, settings.model_names, settings.port) == ("/mnt/models", ("qwen3",), 8080)
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": settings.port}
    assert service["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"]
    (form,) = runtime["spec"]["supportedModelFormats"]
    assert service["spec"]["predictor"]["model"]["modelFormat"]["name"] == form["name"]


def test_the_machine_of_cloud_init_is_made_of_files_that_are_there() -> None:
    config = yaml.safe_load((DEPLOY / "cloud-init" / "jserve.yaml").read_text())
    files = {file["path"]: file["content"] for file in config["write_files"]}
    script = files["/usr/local/sbin/install-jserve"]
    run("sh", "-n", "-c", script)
    named = re.findall(r"\bdeploy/[\w./-]+", script)
    assert len(named) >= 5
    assert not [name for name in named if not (ROOT / name).is_file()]
    assert config["runcmd"] == [["/usr/local/sbin/install-jserve"]]
