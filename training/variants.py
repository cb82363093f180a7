"""One more variant in a bundle that is written already. Knows the contract; runs nothing."""

from collections.abc import Mapping
from types import MappingProxyType

from service import bundle as bundles
from service.bundle import Bundle
from service.manifest import Variant


def with_variant(
    bundle: Bundle, variant: Variant, evaluation: Mapping[str, object] = MappingProxyType({})
) -> Bundle:
    """The bundle with this variant in the place of any of its name, its files digested.

    evaluation: what was measured of it, beside what the manifest says already.
    """
    manifest = bundle.manifest
    others = tuple(each for each in manifest.variants if each.name != variant.name)
    return bundles.write_manifest(
        bundle.path,
        name=manifest.name,
        architecture=manifest.architecture,
        text=manifest.text,
        normalization=manifest.normalization,
        variants=(*others, variant),
        evaluation=manifest.evaluation | dict(evaluation),
        provenance=manifest.provenance,
    )
