"""The objects of one kustomization. Knows YAML and kubectl; knows no rule."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

Object = dict[str, Any]
Role = Literal["head", "worker", "job"]

OLDEST_KUBECTL = (1, 27)
"its kustomize is 5.0, the first that reads every field used here"


@dataclass(frozen=True)
class Pod:
    """A pod template, and the labels its pods will carry, the operator's included."""

    owner: str
    role: Role
    labels: dict[str, str]
    spec: Object

    @property
    def where(self) -> str:
        return f"{self.owner} {self.role}"

    @property
    def container(self) -> Object:
        """The first one: the operator takes it for Ray's."""
        container: Object = self.spec["containers"][0]
        return container

    def ports(self) -> dict[str, int]:
        return {p.get("name", ""): p["containerPort"] for p in self.container.get("ports", [])}


@dataclass(frozen=True)
class Overlay:
    name: str
    objects: list[Object]

    def of_kind(self, *kinds: str) -> list[Object]:
        return [each for each in self.objects if each.get("kind") in kinds]

    def pods(self, *roles: Role) -> Iterator[Pod]:
        for each in self.of_kind("RayService"):
            cluster = each["spec"]["rayClusterConfig"]
            groups: list[tuple[Role, Object]] = [("head", cluster["headGroupSpec"])]
            groups += [("worker", group) for group in cluster.get("workerGroupSpecs", [])]
            for role, group in groups:
                if not roles or role in roles:
                    yield _pod(each, role, group["template"], {"ray.io/node-type": role})
        for each in self.of_kind("Job"):
            if not roles or "job" in roles:
                yield _pod(each, "job", each["spec"]["template"], {})

    def environment(self, container: Object) -> dict[str, str]:
        """Name to value as the container will see it; `env` wins over `envFrom`."""
        maps = {
            each["metadata"]["name"]: each.get("data", {}) for each in self.of_kind("ConfigMap")
        }
        values: dict[str, str] = {}
        for source in container.get("envFrom", []):
            values |= maps.get(source.get("configMapRef", {}).get("name"), {})
        own = {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}
        return values | own


def name_of(each: Object) -> str:
    return f"{each.get('kind')}/{each.get('metadata', {}).get('name')}"


def _pod(owner: Object, role: Role, template: Object, added: dict[str, str]) -> Pod:
    labels = template.get("metadata", {}).get("labels", {})
    return Pod(name_of(owner), role, {**labels, **added}, template["spec"])


def kubectl_version() -> tuple[int, int] | None:
    """(major, minor) of the kubectl on the path; None where there is none."""
    if shutil.which("kubectl") is None:
        return None
    command = ["kubectl", "version", "--client", "--output=json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        version = json.loads(done.stdout)["clientVersion"]["gitVersion"]
        major, minor = re.findall(r"\d+", version)[:2]
    except (ValueError, KeyError):
        return None
    return int(major), int(minor)


def can_render() -> bool:
    version = kubectl_version()
    return version is not None and version >= OLDEST_KUBECTL


def render(path: Path) -> Overlay:
    """`kubectl kustomize`: works offline and asks no cluster. Raises ValueError with its words."""
    command = ["kubectl", "kustomize", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{path}: {done.stderr.strip()}")
    return Overlay(path.name, _documents(done.stdout))


def as_written(path: Path) -> Overlay:
    """A kustomization's own files and generated ConfigMaps, for machines without kubectl.

    Patches, name suffixes, labels and images are not applied, so this is for a base, not for what
    is built on one.
    """
    content = yaml.safe_load((path / "kustomization.yaml").read_text(encoding="utf-8"))
    objects: list[Object] = []
    for file in content["resources"]:
        objects += _documents((path / file).read_text(encoding="utf-8"))
    objects += [_config_map(path, each) for each in content.get("configMapGenerator", [])]
    return Overlay(path.name, objects)


def _config_map(path: Path, generator: Object) -> Object:
    data = {file: (path / file).read_text(encoding="utf-8") for file in generator.get("files", [])}
    for file in generator.get("envs", []):
        lines = (path / file).read_text(encoding="utf-8").splitlines()
        data |= dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    data |= dict(literal.split("=", 1) for literal in generator.get("literals", []))
    metadata = {"name": generator["name"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _documents(text: str) -> list[Object]:
    return [each for each in yaml.safe_load_all(text) if each]
