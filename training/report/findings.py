"""What the numbers mean and where the model is weak, in sentences. Pure.

A weakness is only named where its interval excludes the harmless explanation, or where it was
counted.
"""

from collections.abc import Iterator
from typing import Any

from training.tables import number, percent

Report = dict[str, Any]

WIDE = 0.03
"half width of the accuracy's interval from which two models are hard to tell apart"
NOTABLE = 0.01
"distance from one half that a habit of the data has to have; large data shows any"
VISIBLE = 0.0005
"the smallest share that does not read as 0.0 %"
RISEN = 1.02
"times its lowest held-out loss, from which the last one speaks of overfitting"


def meaning(report: Report) -> list[str]:
    """What the headline is worth."""
    return [*_against_length(report), *_against_truth(report), *_probabilities(report)]


def weaknesses(report: Report) -> list[str]:
    """Plainly; empty when none of the checks found one."""
    return [
        *_certainty(report),
        *_calibration(report),
        *_length(report),
        *_subsets(report),
        *_training(report),
        *_leakage(report),
        *_data(report),
    ]


def _against_length(report: Report) -> Iterator[str]:
    evaluation = report["evaluation"]
    longer, matched = (evaluation["length"][name] for name in ("longer_wins", "matched"))
    if longer["value"] is None:
        return
    rule = "longer" if longer["value"] >= 0.5 else "shorter"
    share = max(longer["value"], 1 - longer["value"])
    gain = 100 * (evaluation["accuracy"] - share)
    text = (
        f"Always taking the {rule} response would be right {one(share)} of the time; the model is "
    )
    text += f"{abs(gain):.1f} points {'above' if gain >= 0 else 'below'} that."
    if matched["value"] is not None:
        text += (
            " Where both responses are about equally long, so that length cannot help, it is "
            f"right {percent(matched)} of the time."
        )
    yield text


def _against_truth(report: Report) -> Iterator[str]:
    evaluation = report["evaluation"]
    if truth := evaluation.get("true_reward_accuracy"):
        yield (
            f"The data's true reward agrees with {one(truth)} of these noisy choices, and nothing "
            f"can do better: the model reaches {one(evaluation['accuracy'] / truth)} of it."
        )
    best = evaluation.get("best_of_n")
    if best and best["share_of_ceiling"] is not None:
        n = best["points"][-1]["n"]
        yield (
            f"Keeping the best of {n} responses by this reward gains "
            f"{one(best['share_of_ceiling'])} of what the judge's own choice would gain over a "
            "random one."
        )


def _probabilities(report: Report) -> Iterator[str]:
    found = report["evaluation"]["temperature"]
    if found and found["low"] <= 1 <= found["high"]:
        yield (
            f"Its probabilities can be taken at their word: the temperature that fits best is "
            f"{number(found, 2)}, and 1 lies inside."
        )


def _certainty(report: Report) -> Iterator[str]:
    evaluation = report["evaluation"]
    if evaluation["collapsed"]:
        yield "Every response to a prompt gets the same reward: the model learned nothing."
    if evaluation["accuracy_95"] is None:
        yield "One prompt is too few for an interval."
        return
    low, high = evaluation["accuracy_95"]
    longer = evaluation["length"]["longer_wins"]["value"]
    if longer is not None and low <= max(longer, 1 - longer):
        yield (
            "It was not shown to know more than length does: the interval reaches down to "
            f"{one(low)}, length alone is right {one(max(longer, 1 - longer))} of the time."
        )
    if (high - low) / 2 > WIDE:
        yield (
            f"{evaluation['prompts']:,} prompts leave ±{50 * (high - low):.1f} points of doubt; "
            "two models are better told apart with `reward-train compare`, which pairs them."
        )


def _calibration(report: Report) -> Iterator[str]:
    found, error = report["evaluation"]["temperature"], report["evaluation"]["ece"]
    if found is None:
        yield "No temperature fits: its margins are no better than chance, or never wrong."
    elif found["low"] > 1:
        yield f"Its margins claim too much: divided by {number(found, 2)} they would fit best."
    elif found["high"] < 1:
        yield f"Its margins claim too little: divided by {number(found, 2)} they would fit best."
    if error["value"] > max(error["if_calibrated_97.5"], VISIBLE):
        yield (
            f"Confidence and accuracy differ by {one(error['value'])} on average (ECE); a "
            f"calibrated model would show {one(error['if_calibrated'])} on as many comparisons, "
            f"rarely more than {one(error['if_calibrated_97.5'])}."
        )


def _length(report: Report) -> Iterator[str]:
    length = report["evaluation"]["length"]
    model, people = length["model_prefers_longer"], length["longer_wins"]
    if _apart(model, people):
        lean = "longer" if model["value"] > people["value"] else "shorter"
        yield (
            f"It leans to the {lean} response: it prefers the longer one in {percent(model)} of "
            f"the comparisons, the data in {percent(people)}."
        )
    longer, shorter = length["longer_preferred"], length["shorter_preferred"]
    if _apart(longer, shorter):
        worse, better = sorted((longer, shorter), key=lambda e: e["value"])
        name = "longer" if worse is longer else "shorter"
        yield (
            f"Where the {name} response was preferred it is right {percent(worse)} of the time, "
            f"elsewhere {percent(better)}."
        )


def _subsets(report: Report) -> Iterator[str]:
    whole = report["evaluation"]["accuracy"]
    weak = [
        f"{name} {percent(subset['accuracy'])}"
        for name, subset in report["evaluation"]["subsets"].items()
        if subset["accuracy"]["high"] is not None and subset["accuracy"]["high"] < whole
    ]
    if weak:
        yield f"Weaker than overall: {', '.join(weak[:5])}{' and others' if len(weak) > 5 else ''}."


def _training(report: Report) -> Iterator[str]:
    held = [(e["step"], e["eval_loss"]) for e in report.get("log") or [] if "eval_loss" in e]
    if held and held[-1][1] > RISEN * min(value for _, value in held):
        step, low = min(held, key=lambda point: point[1])
        yield (
            f"It began to overfit: the held-out loss was lowest at step {step} ({low:.4f}; kept) "
            f"and ended at {held[-1][1]:.4f}."
        )


def _leakage(report: Report) -> Iterator[str]:
    leak = (_checks(report) or {}).get("leakage")
    if leak and leak["overlapping"]:
        text = (
            f"{leak['overlapping']:,} of {leak['prompts']:,} evaluation prompts mostly repeat word "
            f"sequences of training prompts ({leak['ngram']}-grams)"
        )
        clean = report["evaluation"].get("accuracy_without_leaked")
        if clean and clean["value"] is not None:
            text += f"; on the {clean['prompts']:,} others accuracy is {percent(clean)}"
        yield text + "."


def _data(report: Report) -> Iterator[str]:
    checks = _checks(report)
    if not checks:
        return
    for name, text in (
        ("contradictory", "training choices contradict another choice of the same two responses"),
        ("identical", "training comparisons have two identical sides"),
    ):
        if checks[name]:
            yield f"{checks[name]:,} of {checks['comparisons']:,} {text}."
    if cut := report["data"].get("truncated_completions"):
        whole = report["data"]["completions"]
        yield f"The token limits cut {cut:,} of the {whole:,} completions that were trained on."
    void = report["data"].get("issues", {}).get("identical_when_cut")
    if void:
        yield f"They make {void['count']:,} comparisons void: both sides become the same."
    first = checks["first_wins"]
    if first and first["low"] is not None and _far_from_half(first):
        yield f"In the training data the first of two responses wins {percent(first)} of the time."
    near = checks["duplicates"]["near_prompts"]
    if near > 0.05 * checks["prompts"]:
        yield (
            f"{near:,} of {checks['prompts']:,} training prompts are near duplicates of others, so "
            "the data is less varied than its size says."
        )


def _checks(report: Report) -> dict[str, Any] | None:
    return (report.get("data") or {}).get("checks")


def one(share: float) -> str:
    """A share without an interval, as "57.2 %"."""
    return percent({"value": share, "low": None})


def _far_from_half(first: dict[str, Any]) -> bool:
    return bool(first["low"] > 0.5 + NOTABLE or first["high"] < 0.5 - NOTABLE)


def _apart(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two intervals do not touch: a cautious way of saying that the values differ."""
    if None in (a["low"], b["low"]):
        return False
    return bool(a["low"] > b["high"] or b["low"] > a["high"])
