"""Groups of text -> groups of token ids that the likelihood can use. Knows no model."""

from collections.abc import Sequence

from service.errors import DataError, InvalidRequest, TrainingError
from service.text import Encoder
from training.batches import EncodedGroup, ranking
from training.config import Loss
from training.data import Group


def encode_groups(encoder: Encoder, groups: Sequence[Group]) -> list[EncodedGroup]:
    """Token ids of all groups."""
    encoded = []
    for group in groups:
        try:
            rows = encoder.encode_group(group.prompt, group.responses)
        except InvalidRequest as error:
            raise TrainingError(f"data line {group.lines[0]}: {error.message}") from error
        cut = sum(row.truncated for row in rows)
        encoded.append(EncodedGroup([row.ids for row in rows], group.comparisons, cut))
    return encoded


def check_likelihood(groups: Sequence[EncodedGroup], settings: Loss) -> None:
    """Raises DataError, naming the line, where data and likelihood do not speak of the same."""
    for group in groups:
        for c in group.comparisons:
            if settings.likelihood in ("rao-kupper", "plackett-luce") and c.target_margin:
                raise DataError(
                    f"data line {c.line}: loss.likelihood is {settings.likelihood}, which knows no "
                    f"margin, but this one is {c.target_margin}; remove it, or take another "
                    "likelihood"
                )
            if settings.likelihood == "scaled-bradley-terry" and c.target_margin <= 0:
                raise DataError(
                    f"data line {c.line}: loss.likelihood is scaled-bradley-terry, which weighs "
                    f"each comparison by its margin, but that is {c.target_margin}; it must be > 0"
                )
            if settings.likelihood == "rao-kupper" and c.target not in (0.0, 0.5, 1.0):
                raise DataError(
                    f"data line {c.line}: loss.likelihood is rao-kupper, whose targets are 0, 0.5 "
                    f"(a tie) and 1, but this one is {c.target}"
                )
        if settings.likelihood == "plackett-luce":
            try:
                ranking(group)
            except ValueError as error:
                raise DataError(
                    f"data line {group.comparisons[0].line}: loss.likelihood is plackett-luce, "
                    f"but {error}"
                ) from error
