"""What a schema can say: Kubernetes', KubeRay's CRDs', Ray Serve's and our own configuration's."""

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]
import yaml
from pydantic import BaseModel, ValidationError

from k8s.overlay import Object, name_of
from service.config import ServiceConfig

Findings = Iterator[tuple[str, str]]
"(where, what is wrong)"
Validators = Mapping[tuple[str, str], Any]
"(apiVersion, kind) -> validator"

MONITORING = "monitoring.coreos.com/"
RAY = "ray.io/"


def core(each: Object) -> Findings:
    """Against the newest Kubernetes that kubernetes-validate holds; unknown fields are refused."""
    try:
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        yield name_of(each), f"{_path(error.path)}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError:
        yield name_of(each), f"Kubernetes has no {each['kind']} in {each['apiVersion']}"


def read_crds(folder: Path) -> Validators:
    """A validator for every served version of every CRD in the folder; empty where it is absent."""
    validators: dict[tuple[str, str], Any] = {}
    for file in sorted(folder.glob("*.yaml")):
        crd = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)["spec"]
        for version in crd["versions"]:
            key = (f"{crd['group']}/{version['name']}", crd["names"]["kind"])
            schema = strict(version["schema"]["openAPIV3Schema"])
            validators[key] = jsonschema.Draft202012Validator(schema)
    return validators


def strict(schema: Object) -> Object:
    """The schema with properties that it does not name forbidden, except in `metadata`.

    A cluster prunes them silently, so a misspelled key would do nothing and say nothing.

    >>> strict({"type": "object", "properties": {"a": {"type": "string"}}})["additionalProperties"]
    False
    """
    copy = dict(schema)
    if "properties" in schema:
        named = schema["properties"].items()
        copy["properties"] = {k: v if k == "metadata" else strict(v) for k, v in named}
        copy.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            copy[key] = strict(schema[key])
    return copy


def custom(each: Object, validators: Validators) -> Findings:
    """Against its CRD. CEL rules and the operator's own checks are not in it; see the rules."""
    validator = validators.get((each["apiVersion"], each["kind"]))
    if validator is None:
        yield name_of(each), f"no CRD for {each['kind']} in {each['apiVersion']}"
        return
    for error in sorted(validator.iter_errors(each), key=lambda e: list(map(str, e.path))):
        yield name_of(each), f"{_path(error.path)}: {error.message}"


def serve(service: Object) -> Findings:
    """`serveConfigV2` against Ray Serve's schema, and the builder's arguments against ours.

    Ray ignores keys it does not know, for the sake of newer configurations; here they are refused.
    """
    from ray.serve.schema import ServeDeploySchema

    where = f"{name_of(service)} serveConfigV2"
    config = serve_config(service)
    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        yield from ((where, line) for line in _lines(error))
        return
    for key in unknown_keys(ServeDeploySchema, config):
        yield where, f"{key}: Ray Serve knows no such key and would ignore it"
    for application in config["applications"]:
        try:
            ServiceConfig.model_validate(application.get("args", {}))
        except ValidationError as error:
            yield from ((where, f"args.{line}") for line in _lines(error))


def serve_config(service: Object) -> Object:
    config: Object = yaml.safe_load(service["spec"]["serveConfigV2"])
    return config


def unknown_keys(model: type[BaseModel], values: Object, at: str = "") -> Iterator[str]:
    """Dotted names of keys, at any depth, that the pydantic model would drop."""
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            yield f"{at}{key}"
            continue
        inner = _model_in(field.annotation)
        for each in value if isinstance(value, list) else [value]:
            if inner and isinstance(each, dict):
                yield from unknown_keys(inner, each, f"{at}{key}.")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(each) for each in typing.get_args(annotation))
    return next((each for each in found if each), None)


def _lines(error: ValidationError) -> Iterator[str]:
    for each in error.errors():
        yield f"{'.'.join(map(str, each['loc']))}: {each['msg']}"


def _path(parts: typing.Iterable[str | int]) -> str:
    return ".".join(map(str, parts)) or "top level"
