"""The demo's true reward, read off the text, is the one that its data states."""

import pytest

from training.demo.data import generate
from training.demo.truth import true_reward


@pytest.mark.parametrize("seed", [0, 1])
def test_the_true_reward_of_a_text_is_the_one_it_was_made_with(seed: int) -> None:
    for record in generate(prompts=1000, seed=seed):
        read = [true_reward(record["prompt"], text) for text in record["responses"]]
        assert read == record["true_rewards"]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("", -1.5),
        ("The sum is 12", -1.5),
        ("The sum is 12.", 3),
        ("The sum is 1.", 0),
        ("no", -1.5),
    ],
)
def test_a_text_without_an_answer_is_worth_one_to_another_question(
    response: str, expected: float
) -> None:
    assert true_reward("Quick question. What is 7 plus 5?", response) == expected
