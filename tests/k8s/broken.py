"""Ways to break the manifests, and who refuses each. Data for test_manifests.py."""

from collections.abc import Callable
from typing import Any, NamedTuple

import yaml

from k8s.overlay import Object, Overlay
from k8s.schemas import serve_config

Change = Callable[[Overlay], Any]
"what somebody with an editor would do; it is given an overlay of its own"


class Case(NamedTuple):
    wrong: str
    change: Change
    source: str
    "the rule or schema that refuses it, and no other does"
    words: str
    "in its message"


def ray(overlay: Overlay) -> Object:
    return overlay.of_kind("RayService")[0]


def cluster(overlay: Overlay) -> Object:
    spec: Object = ray(overlay)["spec"]["rayClusterConfig"]
    return spec


def group(overlay: Overlay) -> Object:
    workers: Object = cluster(overlay)["workerGroupSpecs"][0]
    return workers


def worker(overlay: Overlay) -> Object:
    container: Object = group(overlay)["template"]["spec"]["containers"][0]
    return container


def first(overlay: Overlay, kind: str) -> Object:
    spec: Object = overlay.of_kind(kind)[0]["spec"]
    return spec


def first_map(overlay: Overlay) -> Object:
    content: Object = overlay.of_kind("ConfigMap")[0]["data"]
    return content


def served(change: Callable[[Object], Any]) -> Change:
    """A change of the Serve config inside the RayService."""

    def apply(overlay: Overlay) -> None:
        config = serve_config(ray(overlay))
        change(config)
        ray(overlay)["spec"]["serveConfigV2"] = yaml.safe_dump(config)

    return apply


def arguments(**values: object) -> Change:
    return served(lambda config: config["applications"][0]["args"].update(values))


def pre_stop(old: str, new: str) -> Change:
    def apply(overlay: Overlay) -> None:
        command = worker(overlay)["lifecycle"]["preStop"]["exec"]["command"]
        command[-1] = command[-1].replace(old, new)

    return apply


def wget(overlay: Overlay) -> None:
    command = ["bash", "-c", "wget -q -O- http://localhost:8000/-/healthz | grep success"]
    worker(overlay)["readinessProbe"] = {"exec": {"command": command}}


def percentage(overlay: Overlay) -> None:
    first(overlay, "PodDisruptionBudget")["minAvailable"] = "50%"


def without_ray_to_ray(overlay: Overlay) -> None:
    first(overlay, "NetworkPolicy")["ingress"].pop(0)


TEN: list[Case] = [
    Case(
        "a misspelled field of the cluster",
        lambda o: group(o).update(rayStartParam={}),
        "KubeRay CRD",
        "'rayStartParam' was unexpected",
    ),
    Case(
        "a Service port that is no number",
        lambda o: first(o, "Service")["ports"][0].update(port="eight"),
        "Kubernetes schema",
        "'eight'",
    ),
    Case(
        "an argument that ServiceConfig does not have",
        arguments(batch_timeout_s=1),
        "Serve schema",
        "args.batch_timeout_s: Extra inputs are not permitted",
    ),
    Case(
        "a name that leaves the operator no room",
        lambda o: ray(o)["metadata"].update(name="r" * 48),
        "ray_name",
        "48 characters, at most 47",
    ),
    Case(
        "token auth without a Ray version",
        lambda o: cluster(o).pop("rayVersion"),
        "ray_version",
        "rayVersion is ''",
    ),
    Case(
        "an upgrade strategy in small letters",
        lambda o: ray(o)["spec"].update(upgradeStrategy={"type": "newCluster"}),
        "upgrade_strategy",
        "'newCluster', not one of",
    ),
    Case(
        "a probe that needs wget",
        wget,
        "probes_without_a_shell",
        "readinessProbe runs bash",
    ),
    Case(
        "a disruption budget in percent",
        percentage,
        "disruption_budget",
        "'50%', it has to be an integer",
    ),
    Case(
        "Ray pods that do not reach each other",
        without_ray_to_ray,
        "network",
        "Ray's own pods do not reach it",
    ),
    Case(
        "an environment that differs from the service's",
        lambda o: first_map(o).update(RAY_SERVE_HAPROXY_TUNE_BUFSIZE="16384"),
        "environment_agrees",
        "is '16384', service/app.py sets '262144'",
    ),
]


MORE: list[Case] = [
    Case(
        "a key that Ray Serve would ignore",
        served(lambda config: config["grpc_options"].update(grpc_servicers=[])),
        "Serve schema",
        "grpc_options.grpc_servicers: Ray Serve knows no such key",
    ),
    Case(
        "an application without an import path",
        served(lambda config: config["applications"][0].pop("import_path")),
        "Serve schema",
        "applications.0.import_path: Field required",
    ),
    Case("no token", lambda o: cluster(o).pop("authOptions"), "token_auth", "is not 'token'"),
    Case(
        "a group without an upper bound",
        lambda o: group(o).update(replicas=3),
        "group_bounds",
        "does not hold: [2, 3, 2]",
    ),
    Case(
        "a head's port of another name",
        lambda o: cluster(o)["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"][
            -1
        ].update(name="grpc"),
        "serve_ports",
        "no port 9000 named serve-grpc",
    ),
    Case(
        "reflection",
        served(lambda config: config["grpc_options"].update(enable_reflection=True)),
        "serve_endpoints",
        "enable_reflection is True",
    ),
    Case(
        "an import path that does not exist",
        served(lambda config: config["applications"][0].update(import_path="service.app:app")),
        "import_path",
        "has no attribute 'app'",
    ),
    Case(
        "a head with room for replicas",
        lambda o: cluster(o)["headGroupSpec"]["rayStartParams"].pop("num-cpus"),
        "head_takes_no_replica",
        "num-cpus of the head is not '0'",
    ),
    Case(
        "more replicas than room",
        arguments(replicas=3),
        "replicas_find_room",
        "3 replicas, but the workers have room for 2",
    ),
    Case(
        "a bundle where nothing is mounted",
        arguments(bundle="/bundles/demo"),
        "bundle_is_mounted",
        "/bundles/demo is not a read-only mount",
    ),
    Case(
        "a pod that ends before its requests",
        lambda o: worker(o).pop("lifecycle"),
        "requests_outlive_the_pod",
        "preStop does not drain the node",
    ),
    Case(
        "a pod that drains for less than a request may take",
        pre_stop("--deadline-remaining-seconds 115", "--deadline-remaining-seconds 60"),
        "requests_outlive_the_pod",
        "preStop takes 60 s, a request may take 110",
    ),
    Case(
        "a pod that is killed while it drains",
        pre_stop("; sleep 115", "; sleep 130"),
        "requests_outlive_the_pod",
        "terminationGracePeriodSeconds is not above",
    ),
    Case(
        "a root user",
        lambda o: worker(o)["securityContext"].update(runAsUser=0),
        "restricted",
        "lacks runAsNonRoot",
    ),
    Case(
        "a read-only /tmp",
        lambda o: worker(o)["volumeMounts"].pop(0),
        "scratch_space",
        "/tmp is not an emptyDir",
    ),
    Case(
        "no limit of memory",
        lambda o: worker(o)["resources"]["limits"].pop("memory"),
        "limits",
        "has no limit of memory",
    ),
    Case(
        "a claim that nobody makes",
        lambda o: o.objects.remove(o.of_kind("PersistentVolumeClaim")[0]),
        "names_exist",
        "PersistentVolumeClaim/reward-bundle is not in the overlay",
    ),
    Case(
        "a Service that finds no pod",
        lambda o: first(o, "Service")["selector"].update({"ray.io/node-type": "workers"}),
        "selectors_find_pods",
        "finds no pod",
    ),
]


JOBS: list[Case] = [
    Case(
        "a user's error is retried",
        lambda o: first(o, "Job")["podFailurePolicy"]["rules"].pop(1),
        "training_job",
        "exit codes [] fail the Job",
    ),
    Case(
        "a setting that TrainConfig does not have",
        lambda o: first(o, "Job")["template"]["spec"]["containers"][0]["args"].append(
            "--set=fit.epoch=2"
        ),
        "training_job",
        "fit.epoch: Extra inputs are not permitted",
    ),
    Case(
        "a lost pod is not replaced",
        lambda o: first(o, "Job").update(backoffLimit=0),
        "training_job",
        "nothing is retried",
    ),
]
