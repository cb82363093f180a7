"""What KubeRay's operator demands of a RayService and no schema says.

A rule is a function from an overlay to findings. Its name is the rule's name, the first line of its
docstring the reason; "kuberay" is github.com/ray-project/kuberay at v1.7, ray-operator/controllers.
"""

import re
from importlib.metadata import version
from typing import Any

from k8s.overlay import Object, Overlay, name_of
from k8s.schemas import Findings

LONGEST_NAME = 47
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
SERVE_PORTS = {"serve": 8000, "serve-grpc": 9000}
BINARIES = re.compile(r"\b(wget|curl|bash|sh)\b")


def ray_name(overlay: Overlay) -> Findings:
    """At most 47 characters and DNS-1035 (kuberay utils/validation.go, RayServiceMetadata)."""
    for each in overlay.of_kind("RayService"):
        name = each["metadata"]["name"]
        if len(name) > LONGEST_NAME:
            yield name_of(each), f"the name has {len(name)} characters, at most {LONGEST_NAME} fit"
        if not DNS_1035.fullmatch(name):
            yield name_of(each), "the name is not a DNS-1035 label: a-z, 0-9, '-', a letter first"


def ray_version(overlay: Overlay) -> Findings:
    """Token auth needs it, and it names the image's Ray (kuberay utils/validation.go)."""
    for each in overlay.of_kind("RayService"):
        given = each["spec"]["rayClusterConfig"].get("rayVersion", "")
        if given != version("ray"):
            yield name_of(each), f"rayVersion is {given!r}, the image's Ray is {version('ray')}"


def token_auth(overlay: Overlay) -> Findings:
    """Ray's ports are code execution; Kubernetes tokens are for RayCluster (kuberay validation)."""
    for each in overlay.of_kind("RayService"):
        options = each["spec"]["rayClusterConfig"].get("authOptions", {})
        if options.get("mode") != "token":
            yield name_of(each), "authOptions.mode is not 'token'"
        if options.get("enableK8sTokenAuth"):
            yield name_of(each), "authOptions.enableK8sTokenAuth is refused for a RayService"


def upgrade_strategy(overlay: Overlay) -> Findings:
    """The CRD takes any text as type, the operator three words (kuberay utils/validation.go)."""
    for each in overlay.of_kind("RayService"):
        strategy = each["spec"].get("upgradeStrategy", {})
        given = strategy.get("type", "NewCluster")
        if given not in UPGRADES:
            yield name_of(each), f"upgradeStrategy.type is {given!r}, not one of {UPGRADES}"
        if given == "NewClusterWithIncrementalUpgrade":
            for missing in _missing_for_incremental(each["spec"]):
                yield name_of(each), f"an incremental upgrade needs {missing}"


def _missing_for_incremental(spec: Object) -> list[str]:
    options = spec["upgradeStrategy"].get("clusterUpgradeOptions", {})
    missing = [
        f"clusterUpgradeOptions.{key}"
        for key in ("gatewayClassName", "stepSizePercent", "intervalSeconds")
        if not options.get(key)
    ]
    if not spec["rayClusterConfig"].get("enableInTreeAutoscaling"):
        missing.append("rayClusterConfig.enableInTreeAutoscaling")
    return missing


def group_bounds(overlay: Overlay) -> Findings:
    """The CRD's defaults are 0 and 2147483647 workers (kuberay raycluster_types.go)."""
    for each in overlay.of_kind("RayService"):
        for group in each["spec"]["rayClusterConfig"].get("workerGroupSpecs", []):
            bounds = [group.get(key) for key in ("minReplicas", "replicas", "maxReplicas")]
            if None in bounds:
                problem = "sets not all of minReplicas, replicas and maxReplicas"
            elif bounds != sorted(bounds):
                problem = f"minReplicas <= replicas <= maxReplicas does not hold: {bounds}"
            else:
                continue
            yield name_of(each), f"worker group {group['groupName']} {problem}"


def serve_ports(overlay: Overlay) -> Findings:
    """Only ports of these names get on the serve Service (kuberay common/service.go)."""
    for pod in overlay.pods("head", "worker"):
        named = pod.ports()
        for name, number in SERVE_PORTS.items():
            if named.get(name) != number:
                yield pod.where, f"its first container has no port {number} named {name}"


def probes_without_a_shell(overlay: Overlay) -> Findings:
    """A worker without probes gets `bash -c "wget ..."` (kuberay common/pod.go): never ready."""
    for pod in overlay.pods("head", "worker"):
        for kind in ("readinessProbe", "livenessProbe"):
            if problem := _probe_problem(pod.container.get(kind)):
                yield pod.where, f"{kind} {problem}"


def _probe_problem(probe: Any) -> str | None:
    if not probe:
        return "is missing, so the operator injects one that may need wget"
    command = " ".join(probe.get("exec", {}).get("command", []))
    if found := BINARIES.search(command):
        return f"runs {found.group()}, which a slim image does not have"
    return None


def disruption_budget(overlay: Overlay) -> Findings:
    """An integer minAvailable below the number of pods: RayCluster has no scale (kuberay 2662)."""
    for each in overlay.of_kind("PodDisruptionBudget"):
        least = each["spec"].get("minAvailable")
        workers = _workers(overlay)
        if not isinstance(least, int) or "maxUnavailable" in each["spec"]:
            yield name_of(each), f"minAvailable is {least!r}, it has to be an integer"
        elif least >= workers:
            yield name_of(each), f"minAvailable {least} of {workers} workers: no node ever drains"


def _workers(overlay: Overlay) -> int:
    return sum(
        group["replicas"]
        for each in overlay.of_kind("RayService")
        for group in each["spec"]["rayClusterConfig"].get("workerGroupSpecs", [])
    )


RULES = (
    ray_name,
    ray_version,
    token_auth,
    upgrade_strategy,
    group_bounds,
    serve_ports,
    probes_without_a_shell,
    disruption_budget,
)
