"""Texts word by word: the ids are the tokenizer's own, whatever it has seen before."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX as QWEN_3_5

from service.prefix import pack
from service.words import LONGEST, MOST, Words
from service.words import WHOLE as WHOLE_FROM

CORPUS = [
    "I don't think it's what they'll say; WE'VE seen U.S. e-mails, haven't we?",
    "Human: the cat sat on the mat.\n\nAssistant: (so it did) <b>12,345</b> times_in_all",
    "  two  spaces\tand\r\n\r\nlines \u00e9t\u00e9 Stra\u00dfe \u4f60\u597d e\u0301 \u2019s",
] * 20
LLAMA_3 = TikTokenConverter.__init__.__defaults__[1]
ADDED = AddedToken("<tool_call>", normalized=False)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), last])


def trained(
    cut: pre_tokenizers.PreTokenizer, normalizer=None, added=ADDED, model=None
) -> Tokenizer:
    tokenizer = Tokenizer(model or models.BPE())
    tokenizer.pre_tokenizer = cut
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, show_progress=False, initial_alphabet=alphabet, min_frequency=1
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([added, AddedToken("K_a_b", normalized=True)])
    return tokenizer


CUT = {
    "gpt2": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "gpt_neox": lambda: trained(
        pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC()
    ),
    "qwen": lambda: trained(split(QWEN), normalizers.NFC()),
    "qwen 3.5": lambda: trained(split(QWEN_3_5), normalizers.NFC()),
    "llama 3": lambda: trained(split(LLAMA_3)),
    "llama 3, whole words first": lambda: trained(
        split(LLAMA_3), model=models.BPE(ignore_merges=True)
    ),
}
WHOLE = {
    "another pattern": lambda: trained(split(r"\w+ \w+|\s+|.")),
    "no pattern": lambda: trained(
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ),
    "space before": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "another normalisation": lambda: trained(split(QWEN), normalizers.Prepend("x")),
    "greedy added token": lambda: trained(split(QWEN), added=AddedToken("cat", rstrip=True)),
    "added whole words": lambda: trained(split(QWEN), added=AddedToken("cat", single_word=True)),
    "added text that is no NFC": lambda: trained(
        split(QWEN), normalizers.NFC(), AddedToken("cafe\u0301 au lait", normalized=True)
    ),
    "chance": lambda: trained(split(QWEN), model=models.BPE(dropout=0.5)),
}
SPACES = " ,  ,\n,\r\n,\t,\x0b,\x1c,\x85,\xa0,\u2003,\u3000".split(",")
MARKS = "\u0301 \u0338 e\u0301 \u212a_a_b \u037e \u00e9 \u017f \u4f60 \u2019 \u01c5 \u00b2".split()
PIECE = st.one_of(
    st.sampled_from([*SPACES, *MARKS, *"aKz.,-_(<=>1", "12", "'", "'s", "'LL", " the", " don't"]),
    st.sampled_from(
        ["Assistant:", ".\nThe", "<tool_call>", "\u2167", "\U0001f468\u200d\U0001f469"]
    ),
    st.text(max_size=3),
    st.text("abcXYZ '.\n", max_size=8),
)
TEXT = st.lists(PIECE, max_size=12).map("".join)


@pytest.fixture(scope="module", params=CUT)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return CUT[request.param]()


@pytest.fixture(scope="module")
def cut(tokenizer: Tokenizer) -> Words:
    words = Words(tokenizer)
    assert words._cuts
    return words


@given(st.lists(TEXT, min_size=1, max_size=3), st.integers(0, 40))
@settings(max_examples=600, deadline=None)
def test_ids_and_places_are_the_tokenizers(tokenizer: Tokenizer, cut: Words, texts, start) -> None:
    """It lives through all examples, so most of their words were seen before, next to others."""
    for text, tokenised in zip(texts, cut.encode(texts), strict=True):
        whole = tokenizer.encode(text, add_special_tokens=False)
        assert [*tokenised.ids] == whole.ids
        assert tokenised.within(start) == sum(end <= start for _, end in whole.offsets)


def test_what_was_seen_is_remembered_in_bounds(tokenizer: Tokenizer) -> None:
    cut = Words(tokenizer)
    [first] = cut.encode(["the cat sat. " + "x" * LONGEST])
    assert {"the", " cat", " sat", "."} <= cut._known.keys() and len(cut._known) == 4
    cut._known["the"] = pack([5])  # what is remembered is what is used
    [second] = cut.encode(["the cat sat. " + "x" * LONGEST])
    assert [*second.ids] == [5, *first.ids[len(tokenizer.encode("the").ids) :]]
    cut._known |= {str(i): pack([i]) for i in range(MOST - 4)}
    cut.encode(["dog"])
    assert [*cut._known] == ["dog"]


def test_the_last_word_that_has_room_is_learned_once(tokenizer: Tokenizer) -> None:
    """Were it learned where it comes again, everything would be forgotten for it."""
    cut = Words(tokenizer)
    cut._known |= {str(i): pack([i]) for i in range(MOST - 1)}
    cut.encode([" cat cat cat"])
    assert len(cut._known) == MOST


@pytest.mark.parametrize("most", [LONGEST + 1, WHOLE_FROM + 1])
def test_of_what_has_few_places_to_cut_little_is_remembered(tokenizer: Tokenizer, most) -> None:
    cut = Words(tokenizer)
    text = "the cat: " + "\u4f60" * (most - 2) + "\U0001f44d" * 9
    [tokenised] = cut.encode([text])
    whole = tokenizer.encode(text, add_special_tokens=False)
    assert [*tokenised.ids] == whole.ids
    assert [tokenised.within(i) for i in range(40)] == [
        sum(end <= i for _, end in whole.offsets) for i in range(40)
    ]
    assert cut._known.keys() == ({"the", " cat"} if most <= WHOLE_FROM else set())


def test_what_a_file_leaves_out_has_its_default(tokenizer: Tokenizer) -> None:
    content = json.loads(tokenizer.to_str())
    steps = content["pre_tokenizer"].get("pretokenizers") or [content["pre_tokenizer"]]
    expected = steps[-1].pop("use_regex") or len(steps) == 2
    del content["normalizer"], content["model"]["dropout"]
    assert Words(Tokenizer.from_str(json.dumps(content)))._cuts == expected


@pytest.mark.parametrize("kind", WHOLE)
def test_what_may_not_be_cut_is_tokenised_whole(kind: str) -> None:
    tokenizer = WHOLE[kind]()
    whole = Words(tokenizer)
    texts = [CORPUS[0], CORPUS[1], "un caf\u00e9 au lait"] * 5
    got = whole.encode(texts)
    assert not whole._known
    if kind != "chance":
        for text, tokenised in zip(texts, got, strict=True):
            expected = tokenizer.encode(text, add_special_tokens=False)
            assert [*tokenised.ids] == expected.ids
            assert [tokenised.within(i) for i in range(40)] == [
                sum(end <= i for _, end in expected.offsets) for i in range(40)
            ]
