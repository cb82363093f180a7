"""What makes the service itself work on the cluster: its Serve config, its room, its environment.

Rules as in operator_rules.py; "ray" is the Ray of this environment, `serve/` in its package.
"""

import os
import re
from collections.abc import Iterator
from importlib import import_module
from unittest import mock

from k8s.overlay import Object, Overlay, name_of
from k8s.schemas import Findings, serve_config
from service.app import environment
from service.config import ServiceConfig
from service.grpc_api import SERVICERS

DRAINS = re.compile(r"ray drain-node .*--deadline-remaining-seconds (\d+); sleep (?P<sleep>\d+)$")


def _configured(overlay: Overlay) -> Iterator[tuple[str, Object, Object, ServiceConfig]]:
    """Of every application: where, the whole Serve config, its own part, its arguments."""
    for each in overlay.of_kind("RayService"):
        whole = serve_config(each)
        for application in whole["applications"]:
            arguments = ServiceConfig.model_validate(application.get("args", {}))
            yield name_of(each), whole, application, arguments


def serve_endpoints(overlay: Overlay) -> Findings:
    """Ports, methods and reflection as `reward-serve run` sets them (service/app.py, run)."""
    for where, whole, application, _ in _configured(overlay):
        http, grpc = whole.get("http_options", {}), whole.get("grpc_options", {})
        wanted = (
            ("http_options.host", http.get("host"), "0.0.0.0"),
            ("http_options.port", http.get("port"), 8000),
            ("grpc_options.port", grpc.get("port"), 9000),
            ("grpc_servicer_functions", grpc.get("grpc_servicer_functions"), SERVICERS),
            ("grpc_options.enable_reflection", grpc.get("enable_reflection"), False),
            ("applications.name", application.get("name"), "default"),
            ("applications.route_prefix", application.get("route_prefix"), "/"),
        )
        for key, given, right in wanted:
            if given != right:
                yield where, f"{key} is {given!r}, it has to be {right!r}"


def import_path(overlay: Overlay) -> Findings:
    """The controller imports it; a wrong one shows only in a running cluster (ray schema.py)."""
    for where, _, application, _ in _configured(overlay):
        module, _, name = application["import_path"].partition(":")
        try:
            getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            yield where, f"import_path {application['import_path']}: {error}"


def head_takes_no_replica(overlay: Overlay) -> Findings:
    """build_app asks for 0 CPUs, which fit a head of 0 CPUs (ray _private/application_state.py)."""
    for each in overlay.of_kind("RayService"):
        head = each["spec"]["rayClusterConfig"]["headGroupSpec"]
        if head.get("rayStartParams", {}).get("num-cpus") != "0":
            yield name_of(each), "rayStartParams.num-cpus of the head is not '0'"
    for where, _, application, _ in _configured(overlay):
        if not _need(application, "num_cpus"):
            yield where, "deployments.ray_actor_options.num_cpus of `reward` is not above 0"


def replicas_find_room(overlay: Overlay) -> Findings:
    """A replica without room keeps the application DEPLOYING (ray _private/deployment_state.py)."""
    for where, _, application, config in _configured(overlay):
        room = sum(_room(group, application) for group in _groups(overlay))
        if config.replicas > room:
            yield where, f"{config.replicas} replicas, but the workers have room for {room}"
        if config.device == "cuda" and not _need(application, "num_gpus"):
            yield where, "device cuda, but ray_actor_options.num_gpus of `reward` is not above 0"


def _groups(overlay: Overlay) -> Iterator[Object]:
    for each in overlay.of_kind("RayService"):
        yield from each["spec"]["rayClusterConfig"].get("workerGroupSpecs", [])


def _room(group: Object, application: Object) -> int:
    """How many replicas the group's pods can take, at their resource limits."""
    limits = group["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
    most = _reward(application).get("max_replicas_per_node") or 100
    for limit, need in (("cpu", "num_cpus"), ("nvidia.com/gpu", "num_gpus")):
        if needed := _need(application, need):
            most = min(most, int(_number(limits.get(limit, 0)) / needed))
    return int(group["replicas"] * most)


def _reward(application: Object) -> Object:
    deployments: list[Object] = application.get("deployments", [])
    return next((each for each in deployments if each["name"] == "reward"), {})


def _need(application: Object, resource: str) -> float:
    return float(_reward(application).get("ray_actor_options", {}).get(resource) or 0)


def _number(quantity: str | int) -> float:
    text = str(quantity)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def environment_agrees(overlay: Overlay) -> Findings:
    """Every process reads them when it imports Ray (service/app.py, environment)."""
    right = constants()
    for pod in overlay.pods("head", "worker"):
        given = overlay.environment(pod.container)
        for name, value in right.items():
            if given.get(name) != value:
                yield pod.where, f"{name} is {given.get(name)!r}, service/app.py sets {value!r}"


def constants() -> dict[str, str]:
    """What `reward-serve run` sets, ports apart: every pod has its own to choose from."""
    with mock.patch.dict(os.environ, clear=True):  # a value that is already set would win
        return environment(ServiceConfig.model_validate({"bundle": "/bundle"}))


def bundle_is_mounted(overlay: Overlay) -> Findings:
    """A replica reads its bundle and writes nothing to it (service/bundle.py)."""
    for where, _, _, config in _configured(overlay):
        for pod in overlay.pods("worker"):
            mounts = {each["mountPath"]: each for each in pod.container.get("volumeMounts", [])}
            if not mounts.get(str(config.bundle), {}).get("readOnly"):
                yield where, f"{config.bundle} is not a read-only mount of the {pod.role}"


def requests_outlive_the_pod(overlay: Overlay) -> Findings:
    """Ray ends on SIGTERM at once; the kubelet sends it after preStop (kuberay issue 1333)."""
    for _, _, _, config in _configured(overlay):
        for pod in overlay.pods("worker"):
            stop = pod.container.get("lifecycle", {}).get("preStop", {}).get("exec", {})
            drains = DRAINS.match(stop.get("command", [""])[-1])
            if not drains:
                yield pod.where, "preStop does not drain the node: `ray drain-node ...; sleep N`"
                continue
            shortest, sleep = min(map(int, drains.groups())), int(drains["sleep"])
            if shortest < config.deadline_s:
                yield (
                    pod.where,
                    f"preStop takes {shortest} s, a request may take {config.deadline_s}",
                )
            if pod.spec.get("terminationGracePeriodSeconds", 30) <= sleep:
                yield pod.where, "terminationGracePeriodSeconds is not above preStop's sleep"


RULES = (
    serve_endpoints,
    import_path,
    head_takes_no_replica,
    replicas_find_room,
    environment_agrees,
    bundle_is_mounted,
    requests_outlive_the_pod,
)
