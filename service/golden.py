"""A bundle's golden scores, replayed. Knows what an engine must give; knows nothing of serving."""

from collections.abc import Sequence

from pydantic import ValidationError

from service import bundle as bundles
from service.bundle import Bundle, first_reason
from service.engine import Engine
from service.errors import BundleError, InvalidRequest
from service.manifest import GoldenRow, Variant
from service.text import Encoder, Message, Prompt


def replay(bundle: Bundle, variant: Variant, encoder: Encoder, engine: Engine) -> float:
    """The largest distance of a reward from what training computed.

    Raises BundleError where a row has other token ids than at export, or a distance is above the
    variant's tolerance.
    """
    rows = bundle.golden()
    if not rows:
        raise BundleError(f"{bundles.GOLDEN}: holds no rows, so nothing can be proved")
    return max(_distance(i, row, variant, encoder, engine) for i, row in enumerate(rows))


def _distance(i: int, row: GoldenRow, variant: Variant, encoder: Encoder, engine: Engine) -> float:
    where = f"{bundles.GOLDEN}: row {i}"
    try:
        ids = encoder.encode(_turns(row.prompt), row.response, field=where).ids
    except InvalidRequest as error:
        raise BundleError(error.message, field=bundles.GOLDEN) from error
    except ValidationError as error:
        field, why = first_reason(error)
        raise BundleError(f"{where}: {field}: {why}", field=bundles.GOLDEN) from error
    if ids != row.ids:
        raise BundleError(f"{where}: encodes to other token ids than when it was exported")
    reward = float(engine.run([ids])[0])
    distance = abs(reward - row.reward)
    if not distance <= variant.tolerance:
        raise BundleError(
            f"{where}: the engine gives {reward!r}, training gave {row.reward!r}; "
            f"the tolerance of variant {variant.name} is {variant.tolerance}"
        )
    return distance


def _turns(prompt: str | list[dict[str, str]]) -> Prompt:
    return prompt if isinstance(prompt, str) else [Message.model_validate(m) for m in prompt]


def reproduces_bits(rows: Sequence[Sequence[int]], engine: Engine) -> bool:
    """Whether rows of token ids get the same bits alone, together, and behind a shared prefix.

    Splits at 2, 16, half and all but two tokens of every row. Some kernels do not promise it:
    ONNX Runtime's CPU attention with heads wider than 128, for one.
    """
    alone = [engine.run([row])[0].tobytes() for row in rows]
    together = [reward.tobytes() for reward in engine.run(rows)]
    split = all(
        engine.run([row, row[:-1]], tokens)[0].tobytes() == bits
        for row, bits in zip(rows, alone, strict=True)
        for tokens in {2, 16, len(row) // 2, len(row) - 3}
        if 2 <= tokens <= len(row) - 3
    )
    return alone == together and split
