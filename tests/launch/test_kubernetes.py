"""launch/k8s/: the manifest is what the Kubernetes API takes, and says the same thing everywhere it says
it."""

from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "launch/k8s"
SERVICE, JOB = yaml.safe_load_all((FOLDER / "train.yaml").read_text())
VERSIONS = ("1.29", "1.34")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", [SERVICE, JOB], ids=lambda manifest: manifest["kind"])
def test_manifest_keeps_to_the_schema_of_the_api(manifest, version):
    validator = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed (requirements-test.txt)"
    )
    validator.validate(manifest, version, strict=True)
    with pytest.raises(validator.ValidationError):  # strict: a field that the API does not have is an error
        validator.validate({**manifest, "spec": {**manifest["spec"], "nodes": 2}}, version, strict=True)


def test_pods_find_each_other_and_a_checkpoint():
    spec = JOB["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    environment = {item["name"]: item.get("value") for item in container["env"]}
    name = JOB["metadata"]["name"]
    assert (
        environment["MASTER_ADDR"] == f"{name}-0.{SERVICE['metadata']['name']}"
        and spec["subdomain"] == SERVICE["metadata"]["name"]
    )
    assert SERVICE["spec"]["selector"].items() <= JOB["spec"]["template"]["metadata"]["labels"].items()
    assert int(environment["NNODES"]) == JOB["spec"]["completions"] == JOB["spec"]["parallelism"]
    assert environment["GPUS"] == container["resources"]["limits"]["nvidia.com/gpu"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in spec["volumes"]
    }
    assert int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < spec["terminationGracePeriodSeconds"], (
        "torchrun is killed itself"
    )
    assert "--resume=auto" in container["args"], "a pod that starts again would begin from nothing"
