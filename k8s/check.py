"""Are the manifests right? Renders every overlay and checks it, without a cluster.

python k8s/check.py [--crds DIR]
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # k8s/ is not installed

from k8s import cluster_rules, operator_rules, schemas, serving_rules
from k8s.overlay import OLDEST_KUBECTL, Object, Overlay, as_written, can_render, render

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "k8s" / "base"
OVERLAYS = (BASE, *sorted((ROOT / "k8s" / "overlays").iterdir()))

Rule = Callable[[Overlay], schemas.Findings]
RULES: tuple[Rule, ...] = (*operator_rules.RULES, *serving_rules.RULES, *cluster_rules.RULES)


@dataclass(frozen=True)
class Problem:
    source: str
    "the rule's name, or which schema"
    where: str
    message: str
    reason: str = ""

    def __str__(self) -> str:
        why = f"\n      {self.reason}" if self.reason else ""
        return f"  {self.source}: {self.where}: {self.message}{why}"


def problems(overlay: Overlay, crds: schemas.Validators) -> list[Problem]:
    """What the schemas refuse; if they refuse nothing, what the rules do, which rely on them."""
    found = [problem for each in overlay.objects for problem in by_schema(each, crds)]
    return found or [problem for rule in RULES for problem in by_rule(rule, overlay)]


def schema_of(each: Object, crds: schemas.Validators) -> str:
    """Which schema an object is checked against; "rules only" where there is none."""
    version = each.get("apiVersion", "")
    if version.startswith(schemas.RAY):
        return "KubeRay's CRD and Ray Serve" if crds else "Ray Serve"
    return "rules only" if version.startswith(schemas.MONITORING) else "Kubernetes"


def by_schema(each: Object, crds: schemas.Validators) -> Iterator[Problem]:
    checks: dict[str, Iterator[tuple[str, str]]] = {}
    if schema_of(each, crds) == "Kubernetes":
        checks["Kubernetes schema"] = schemas.core(each)
    if schema_of(each, crds).startswith("KubeRay"):
        checks["KubeRay CRD"] = schemas.custom(each, crds)
    if each.get("kind") == "RayService":
        checks["Serve schema"] = schemas.serve(each)
    for source, findings in checks.items():
        yield from (Problem(source, where, message) for where, message in findings)


def by_rule(rule: Rule, overlay: Overlay) -> Iterator[Problem]:
    reason = (rule.__doc__ or "").strip().splitlines()[0]
    for where, message in rule(overlay):
        yield Problem(rule.__name__, where, message, reason)


def load() -> Iterator[Overlay]:
    """Every overlay; only the base, as it is written, where kubectl cannot render."""
    if can_render():
        yield from map(render, OVERLAYS)
        return
    oldest = ".".join(map(str, OLDEST_KUBECTL))
    print(f"rendering is skipped: there is no kubectl {oldest} or later; only the base is checked")
    yield as_written(BASE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crds", type=Path, metavar="DIR", help="folder of KubeRay's CRDs")
    folder = parser.parse_args().crds
    crds = schemas.read_crds(folder) if folder else {}
    if folder and not crds:
        parser.error(f"--crds {folder}: no CRD is there")
    if not folder:
        print("no KubeRay CRDs (make k8s-check CRDS=DIR): Ray objects are checked by rules only")
    for overlay in load():
        if found := problems(overlay, crds):
            print(f"{overlay.name}: refused", *found, sep="\n")
            return 1
        counts = Counter(schema_of(each, crds) for each in overlay.objects)
        shown = ", ".join(f"{number} against {name}" for name, number in sorted(counts.items()))
        print(f"{overlay.name}: {len(overlay.objects)} objects: {shown}; {len(RULES)} rules hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
