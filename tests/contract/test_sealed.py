"""Kept segments: the ids are those of the whole text, whatever was tokenised before."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from service.sealed import SealedTokenizer

CORPUS = ["the cat sat on the mat", "Hello there, World! ", "  two  spaces ", "Grüße 12 345"] * 20
SPECIAL = ["<s>", "</s>", "[unk]"]


def _trained(model, trainer, pre_tokenizer, normalizer=None, special=None) -> str:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(special or SPECIAL)
    tokenizer.add_tokens([AddedToken("cat", normalized=True), AddedToken("mat", lstrip=True)])
    return tokenizer.to_str()


def _bpe(pre_tokenizer, **other) -> str:
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    return _trained(models.BPE(unk_token="[unk]"), trainer, pre_tokenizer, **other)


def _unigram(scheme: str) -> str:
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="[unk]", show_progress=False
    )
    return _trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(prepend_scheme=scheme))


def _wordpiece() -> str:
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    lower = normalizers.BertNormalizer(lowercase=True)
    model = models.WordPiece(unk_token="[unk]")
    return _trained(model, trainer, pre_tokenizers.BertPreTokenizer(), lower)


TOKENIZERS = {
    "byte level": lambda: _bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "byte level, space before": lambda: _bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "prepend and replace, as Llama 2": lambda: _bpe(
        pre_tokenizers.Split(" ", "merged_with_next"),
        normalizer=normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"), normalizers.NFC()]
        ),
    ),
    "metaspace always": lambda: _unigram("always"),
    "metaspace first": lambda: _unigram("first"),
    "word pieces, lower case": _wordpiece,
    "greedy special tokens": lambda: _bpe(
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        special=[AddedToken("<s>", rstrip=True), AddedToken("</s>", lstrip=True), "[unk]"],
    ),
}
PIECE = st.one_of(
    st.sampled_from([*SPECIAL, " ", "  ", "cat", " mat", "the Cat"]), st.text(max_size=6)
)
TEXT = st.lists(PIECE, max_size=8).map("".join)


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request) -> SealedTokenizer:
    return SealedTokenizer(TOKENIZERS[request.param]())


@given(st.lists(st.tuples(TEXT, TEXT, st.booleans()), min_size=1, max_size=4), TEXT)
@settings(max_examples=150, deadline=None)
def test_segments_give_the_ids_of_the_whole_text(tokenizer: SealedTokenizer, rows, prompt) -> None:
    """The tokenizer lives through all examples, so most of their segments were seen before.

    Some texts do not begin with the opening that they come with.
    """
    start, _ = tokenizer.seal(prompt)
    texts = [start * begins + tokenizer.seal(a + b)[0] for a, b, begins in rows]
    opening = tokenizer.opening(start)
    assert [*opening.ids] == tokenizer._tokenizer.encode(start, add_special_tokens=False).ids
    for text, tokens in zip(texts, tokenizer.encode(opening, texts), strict=True):
        whole = tokenizer._tokenizer.encode(text, add_special_tokens=False)
        assert [*tokens.ids] == whole.ids
        assert tokens.inside == sum(end <= len(start) for _, end in whole.offsets)


def test_a_prompt_is_tokenised_once(tokenizer: SealedTokenizer) -> None:
    prompt, _ = tokenizer.seal("<s>the cat sat on the mat</s>")
    tokenizer.encode(tokenizer.opening(prompt), [prompt + "Hello"])
    kept = "the cat sat on the mat" in tokenizer._kept
    greedy_or_first = tokenizer._split.pattern == r"(?!)"
    assert kept != greedy_or_first
    assert not any("Hello" in text for text in tokenizer._kept)
