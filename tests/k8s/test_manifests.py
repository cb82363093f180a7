"""The manifests pass their check, and each way of breaking them is refused for its own reason."""

import subprocess
import sys
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from k8s import check, operator_rules, serving_rules
from k8s.check import BASE, OVERLAYS, ROOT, RULES, problems
from k8s.overlay import Overlay, as_written, can_render, render
from k8s.schemas import read_crds, serve_config, strict, unknown_keys
from service.config import ServiceConfig
from tests.conftest import SHARED
from tests.k8s.broken import JOBS, MORE, TEN, Case, cluster, group, percentage, ray

needs_kubectl = pytest.mark.skipif(not can_render(), reason="kubectl 1.27 or later is not here")
CRDS = SHARED / "kuberay"
needs_crds = pytest.mark.skipif(not CRDS.is_dir(), reason="KubeRay's CRDs are not here")


@pytest.fixture(scope="module")
def base() -> Overlay:
    """The rendered base; as it is written where there is no kubectl: only names differ."""
    return render(BASE) if can_render() else as_written(BASE)


@pytest.fixture(scope="module")
def training() -> Overlay:
    path = ROOT / "k8s" / "overlays" / "training"
    return render(path) if can_render() else as_written(path)


@pytest.fixture(scope="module")
def crds() -> Any:
    return read_crds(CRDS)


@needs_kubectl
@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.name)
def test_an_overlay_passes(path: Path, crds: Any) -> None:
    assert problems(render(path), crds) == []


def test_the_files_as_written_pass(base: Overlay, training: Overlay, crds: Any) -> None:
    assert problems(base, crds) == []
    assert problems(training, crds) == []
    assert problems(as_written(BASE), crds) == []


@needs_kubectl
def test_an_overlay_holds_what_it_is_for() -> None:
    kinds = {path.name: {each["kind"] for each in render(path).objects} for path in OVERLAYS}
    served = {"RayService", "Service", "ConfigMap", "NetworkPolicy", "PersistentVolumeClaim"}
    assert kinds["base"] == kinds["gpu"] == served | {"PodDisruptionBudget", "PodMonitor"}
    assert kinds["dev-cpu"] == served
    assert kinds["training"] == {"Job", "ConfigMap", "NetworkPolicy", "PersistentVolumeClaim"}


@needs_kubectl
def test_the_gpu_overlay_asks_for_a_gpu_per_replica() -> None:
    gpu = render(ROOT / "k8s" / "overlays" / "gpu")
    [worker] = gpu.pods("worker")
    assert worker.container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert worker.spec["nodeSelector"]
    assert worker.spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    [application] = serve_config(ray(gpu))["applications"]
    assert application["args"]["device"] == "cuda"
    assert application["deployments"][0]["ray_actor_options"]["num_gpus"] == 1


BUILT = [("reward-serve", "cpu"), ("reward-serve", "gpu"), ("reward-train", "cpu")]


@needs_kubectl
def test_kustomize_sets_the_images() -> None:
    images = {pod.container["image"] for path in OVERLAYS for pod in render(path).pods()}
    tags = {f"{name}:{version('reward-service')}-{runtime}" for name, runtime in BUILT}
    assert images == tags  # what `make image` builds


@needs_kubectl
def test_a_changed_environment_is_a_new_cluster(base: Overlay) -> None:
    """The ConfigMap's name ends in a hash of its content and is part of the cluster's spec."""
    [made] = base.of_kind("ConfigMap")
    for pod in base.pods():
        assert pod.container["envFrom"] == [{"configMapRef": {"name": made["metadata"]["name"]}}]
    assert made["metadata"]["name"] != "reward-service-environment"


def test_the_environment_is_the_services_own(base: Overlay) -> None:
    constants = serving_rules.constants()
    assert "RAY_SERVE_HAPROXY_RETRY_ON" in constants
    for pod in base.pods():
        assert constants.items() <= base.environment(pod.container).items()


def test_a_variable_that_is_set_here_does_not_change_what_is_right(
    base: Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert list(serving_rules.environment_agrees(base)) == []


def test_ray_builds_the_application_from_the_arguments(base: Overlay) -> None:
    """With Ray's own code: the dictionary becomes a ServiceConfig, the deployment has its name."""
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    from service.app import build_app

    [application] = serve_config(ray(base))["applications"]
    builder: Any = build_app
    built = call_user_app_builder_with_args_if_necessary(builder, application["args"])
    assert built._bound_deployment.name == application["deployments"][0]["name"]
    assert built._bound_deployment.num_replicas == application["args"]["replicas"]


def refuse(overlay: Overlay, case: Case, crds: Any) -> None:
    broken = deepcopy(overlay)
    case.change(broken)
    found = problems(broken, crds)
    assert {each.source for each in found} == {case.source}, [str(each) for each in found]
    assert any(case.words in each.message for each in found), [str(each) for each in found]


@pytest.mark.parametrize("case", [*TEN, *MORE], ids=lambda case: case.wrong)
def test_a_broken_manifest_is_refused_for_its_own_reason(
    base: Overlay, case: Case, crds: Any
) -> None:
    if case.source == "KubeRay CRD" and not crds:
        pytest.skip("KubeRay's CRDs are not here")
    refuse(base, case, crds)


@pytest.mark.parametrize("case", JOBS, ids=lambda case: case.wrong)
def test_a_broken_training_job_is_refused(training: Overlay, case: Case, crds: Any) -> None:
    refuse(training, case, crds)


def test_every_rule_refuses_something_above() -> None:
    refusing = {case.source for case in [*TEN, *MORE, *JOBS]}
    assert {rule.__name__ for rule in RULES} <= refusing


def test_every_rule_gives_its_reason_and_its_source_in_one_line() -> None:
    for rule in RULES:
        [reason] = (rule.__doc__ or "").splitlines()
        assert "(" in reason, rule.__name__


def test_an_incremental_upgrade_names_what_it_needs(base: Overlay) -> None:
    broken = deepcopy(base)
    ray(broken)["spec"]["upgradeStrategy"] = {"type": "NewClusterWithIncrementalUpgrade"}
    messages = [message for _, message in operator_rules.upgrade_strategy(broken)]
    assert len(messages) == 4  # three options and the autoscaler


@needs_crds
def test_a_crd_still_takes_labels_and_free_maps(base: Overlay, crds: Any) -> None:
    changed = deepcopy(base)
    cluster(changed)["headGroupSpec"]["template"]["metadata"]["creationTimestamp"] = None
    group(changed)["rayStartParams"]["num-cpus"] = "4"
    assert problems(changed, crds) == []


def test_a_property_called_properties_is_no_schema_keyword() -> None:
    schema = {"properties": {"properties": {"type": "string"}, "items": {"type": "string"}}}
    assert strict(schema)["properties"] == schema["properties"]


def test_unknown_keys_are_found_at_any_depth() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = {"applications": [{"deployments": [{"nam": "x", "ray_actor_options": {"cpu": 1}}]}]}
    assert list(unknown_keys(ServeDeploySchema, config)) == [
        "applications.deployments.nam",
        "applications.deployments.ray_actor_options.cpu",
    ]
    assert list(unknown_keys(ServiceConfig, {"bundle": "/bundle"})) == []


def test_the_command_succeeds_and_counts() -> None:
    command = [sys.executable, str(ROOT / "k8s" / "check.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules hold" in done.stdout


def test_the_command_fails_with_the_problem(
    base: Overlay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = deepcopy(base)
    percentage(broken)
    monkeypatch.setattr(check, "load", lambda: iter([broken]))
    monkeypatch.setattr(sys, "argv", ["check.py"])
    assert check.main() == 1
    assert "disruption_budget: PodDisruptionBudget/reward-service" in capsys.readouterr().out


def test_without_kubectl_the_base_is_checked_and_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", ["check.py"])
    assert check.main() == 0
    shown = capsys.readouterr().out
    assert "rendering is skipped" in shown
    assert "checked by rules only" in shown


def test_a_folder_without_crds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["check.py", "--crds", str(tmp_path)])
    with pytest.raises(SystemExit):
        check.main()
    assert f"--crds {tmp_path}: no CRD is there" in capsys.readouterr().err
