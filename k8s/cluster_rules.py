"""How the objects hold together on a cluster: rights, traffic, names, the training job.

Rules as in operator_rules.py.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from k8s.overlay import Object, Overlay, Pod, name_of
from k8s.schemas import Findings
from service.errors import TrainingError
from training.config import read_config

CLIENTS = {8000, 9000}
METRICS = {8080, 44227}
OPERATOR = {8265, 8000}


def restricted(overlay: Overlay) -> Findings:
    """The Pod Security Standard "restricted", and no token of the API (kubernetes.io/docs)."""
    for pod in overlay.pods():
        inside = pod.container.get("securityContext", {})
        both = {**pod.spec.get("securityContext", {}), **inside}
        wanted = {
            "runAsNonRoot": both.get("runAsNonRoot") is True and both.get("runAsUser") != 0,
            "allowPrivilegeEscalation: false": inside.get("allowPrivilegeEscalation") is False,
            "capabilities.drop: [ALL]": inside.get("capabilities", {}).get("drop") == ["ALL"],
            "readOnlyRootFilesystem": inside.get("readOnlyRootFilesystem") is True,
            "seccompProfile": both.get("seccompProfile", {}).get("type") == "RuntimeDefault",
            "automountServiceAccountToken: false": not pod.spec.get(
                "automountServiceAccountToken", True
            ),
        }
        yield from ((pod.where, f"lacks {name}") for name, holds in wanted.items() if not holds)


def scratch_space(overlay: Overlay) -> Findings:
    """Ray writes to /tmp and /dev/shm, and the root is read-only (ray _private/node.py)."""
    for pod in overlay.pods():
        volumes = {each["name"]: each for each in pod.spec.get("volumes", [])}
        mounts = {m["mountPath"]: m["name"] for m in pod.container.get("volumeMounts", [])}
        for path in ("/tmp", "/dev/shm"):
            volume = volumes.get(mounts.get(path, ""), {})
            if not volume.get("emptyDir", {}).get("sizeLimit"):
                yield pod.where, f"{path} is not an emptyDir with a sizeLimit"


def limits(overlay: Overlay) -> Findings:
    """Ray takes --num-cpus and --memory from the limits (kuberay common/pod.go)."""
    for pod in overlay.pods():
        given = pod.container.get("resources", {}).get("limits", {})
        for resource in {"cpu", "memory"} - given.keys():
            yield pod.where, f"has no limit of {resource}"


def names_exist(overlay: Overlay) -> Findings:
    """A pod waits for ever for a ConfigMap or claim that nobody makes (kubernetes.io/docs)."""
    made = {name_of(each) for each in overlay.objects}
    for pod in overlay.pods():
        for name in sorted(set(_names(pod)) - made):
            yield pod.where, f"{name} is not in the overlay"


def _names(pod: Pod) -> Iterator[str]:
    for source in pod.container.get("envFrom", []):
        yield f"ConfigMap/{source.get('configMapRef', {}).get('name')}"
    for volume in pod.spec.get("volumes", []):
        if "configMap" in volume:
            yield f"ConfigMap/{volume['configMap']['name']}"
        if "persistentVolumeClaim" in volume:
            yield f"PersistentVolumeClaim/{volume['persistentVolumeClaim']['claimName']}"


def selectors_find_pods(overlay: Overlay) -> Findings:
    """A selector that finds nothing is no error to Kubernetes (kubernetes.io/docs)."""
    for each in overlay.objects:
        selector = _selector(each)
        if selector is None:
            continue
        found = [pod for pod in overlay.pods() if selector.items() <= pod.labels.items()]
        if not found:
            yield name_of(each), f"its selector {selector} finds no pod"
        for port in _named_ports(each):
            if any(port not in pod.ports() for pod in found):
                yield name_of(each), f"the pods it selects have no port named {port}"


def _selector(each: Object) -> dict[str, str] | None:
    spec = each.get("spec", {})
    selector: dict[str, str] | None = None
    match each["kind"]:
        case "Service":
            selector = spec.get("selector")
        case "NetworkPolicy":
            selector = spec["podSelector"].get("matchLabels")
        case "PodDisruptionBudget" | "PodMonitor":
            selector = spec["selector"].get("matchLabels")
    return selector


def _named_ports(each: Object) -> list[str]:
    if each["kind"] == "Service":
        targets = [port.get("targetPort") for port in each["spec"]["ports"]]
        return [target for target in targets if isinstance(target, str)]
    if each["kind"] == "PodMonitor":
        return [endpoint["port"] for endpoint in each["spec"]["podMetricsEndpoints"]]
    return []


def network(overlay: Overlay) -> Findings:
    """Whoever reaches GCS or the dashboard runs code (ray security.md): only who must gets in."""
    for pod in overlay.pods("head", "worker"):
        policies = [
            each["spec"]
            for each in overlay.of_kind("NetworkPolicy")
            if (_selector(each) or {}).items() <= pod.labels.items()
        ]
        ingress = [rule for policy in policies for rule in policy.get("ingress", [])]
        egress = [rule for policy in policies for rule in policy.get("egress", [])]
        yield from ((pod.where, problem) for problem in _ingress(pod, ingress))
        yield from ((pod.where, problem) for problem in _egress(pod, egress))


def _ingress(pod: Pod, rules: list[Object]) -> Iterator[str]:
    if not any(_is_ours(rule.get("from", []), pod) and "ports" not in rule for rule in rules):
        yield "Ray's own pods do not reach it on every port"
    others = [rule for rule in rules if not _is_ours(rule.get("from", []), pod)]
    if any("ports" not in rule or not rule.get("from") for rule in others):
        yield "a rule of its NetworkPolicy opens every port, or lets everybody in"
    opened = {port["port"] for rule in others for port in rule.get("ports", [])}
    needed = {8080} | (OPERATOR if pod.role == "head" else CLIENTS)
    yield from (f"port {port} is needed and closed" for port in sorted(needed - opened))
    allowed = CLIENTS | METRICS | (OPERATOR if pod.role == "head" else set())
    yield from (f"port {port} is open to others" for port in sorted(opened - allowed))


def _egress(pod: Pod, rules: list[Object]) -> Iterator[str]:
    if not any(_is_ours(rule.get("to", []), pod) and "ports" not in rule for rule in rules):
        yield "it does not reach Ray's own pods on every port"
    opened = {(each["protocol"], each["port"]) for rule in rules for each in rule.get("ports", [])}
    yield from (f"no egress to DNS over {p}" for p in ("UDP", "TCP") if (p, 53) not in opened)


def _is_ours(peers: list[Object], pod: Pod) -> bool:
    """Are all these peers pods with labels that our Ray pods carry?"""
    return bool(peers) and all(
        "namespaceSelector" not in peer
        and (labels := peer.get("podSelector", {}).get("matchLabels"))
        and labels.items() <= pod.labels.items()
        for peer in peers
    )


def training_job(overlay: Overlay) -> Findings:
    """Exit code 1 is the user's error and fails the Job; others are retried (training/__main__)."""
    for each in overlay.of_kind("Job"):
        spec = each["spec"]
        if spec["template"]["spec"].get("restartPolicy") != "Never":
            yield name_of(each), "podFailurePolicy works with restartPolicy Never only"
        if not spec.get("backoffLimit"):
            yield name_of(each), "backoffLimit is not above 0, so nothing is retried"
        if _failing_codes(spec) != [1]:
            yield name_of(each), f"exit codes {_failing_codes(spec)} fail the Job, it has to be [1]"
        yield from ((name_of(each), problem) for problem in _fit_problems(overlay, each))


def _failing_codes(spec: Object) -> list[int]:
    rules = spec.get("podFailurePolicy", {}).get("rules", [])
    codes = [rule.get("onExitCodes", {}) for rule in rules if rule["action"] == "FailJob"]
    return [value for each in codes if each.get("operator") == "In" for value in each["values"]]


def _fit_problems(overlay: Overlay, job: Object) -> Iterator[str]:
    """The command's own configuration, read as `reward-train fit` reads it."""
    container = job["spec"]["template"]["spec"]["containers"][0]
    match [*container.get("command", []), *container.get("args", [])]:
        case ["reward-train", "fit", path, *rest] if all(r.startswith("--set=") for r in rest):
            settings = [each.removeprefix("--set=") for each in rest]
        case command:
            yield f"the command is not `reward-train fit CONFIG --set=KEY=VALUE ...`: {command}"
            return
    texts = [each["data"].get(Path(path).name) for each in overlay.of_kind("ConfigMap")]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / Path(path).name
        file.write_text("\n".join(filter(None, texts)), encoding="utf-8")
        try:
            read_config(file, settings)
        except TrainingError as error:
            yield error.message.replace(str(file), path)


RULES = (
    restricted,
    scratch_space,
    limits,
    names_exist,
    selectors_find_pods,
    network,
    training_job,
)
