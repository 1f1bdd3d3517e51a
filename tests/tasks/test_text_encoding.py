"""Texts as sequences: the layout of each architecture, and what happens to texts that are too long."""

import numpy as np
import pytest

from lm.data.config import TokenizerConfig
from lm.data.tokenizers import train_tokenizer
from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.tasks.text_encoding import AXES, Layout, encode_texts, longest_first, special_tokens


def make_tokenizer(architecture="decoder", end_of_text=True):
    plain = train_tokenizer(TokenizerConfig(kind="bytes", end_of_text=end_of_text), lambda split: [])
    return plain.with_special_tokens(special_tokens(architecture))


def encode(architecture, texts, pairs=None, max_length=16, truncate=False, tokenizer=None):
    places = [f"rows.jsonl:{number}" for number in range(1, len(texts) + 1)]
    tokenizer = tokenizer or make_tokenizer(architecture)
    model = ModelConfig(architecture, max_length=max_length)
    return encode_texts(tokenizer, model, texts, pairs, truncate, places)


def decoded(architecture, *arguments, **choices):
    encoded = encode(architecture, *arguments, **choices)
    tokenizer = make_tokenizer(architecture)
    return [tokenizer.decode(example["tokens"], skip_special_tokens=False) for example in encoded.examples]


@pytest.mark.parametrize(
    ("architecture", "single", "pair"),
    [
        ("encoder", "[CLS]ab[SEP]", "[CLS]ab[SEP]cde[SEP]"),
        ("decoder", "<|endoftext|>ab", "<|endoftext|>ab<|endoftext|>cde"),
        ("lstm", "ab", "ab[SEP]cde"),
        ("gru", "ab", "ab[SEP]cde"),
    ],
)
def test_each_architecture_has_its_layout(architecture, single, pair):
    assert decoded(architecture, ["ab"]) == [single]
    assert decoded(architecture, ["ab"], ["cde"]) == [pair]


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "lstm"])
def test_segments_and_types(architecture):
    (example,) = encode(architecture, ["ab"], ["cde"]).examples
    assert example.keys() == AXES.keys()
    assert all(array.dtype == np.int32 and array.shape == example["tokens"].shape for array in example.values())
    assert (example["segments"] == 1).all()
    second = {"encoder": 4, "decoder": 3, "lstm": 3}[architecture]
    np.testing.assert_array_equal(example["types"][-second:], 1)
    np.testing.assert_array_equal(example["types"][:-second], 0)
    (example,) = encode(architecture, ["ab"]).examples
    assert not example["types"].any()


def test_end_of_text_replaces_missing_special_tokens():
    plain = make_tokenizer("decoder")
    assert special_tokens("decoder") == ()
    (example,) = encode("encoder", ["ab"], ["c"], tokenizer=plain).examples
    end = plain.end_of_text
    np.testing.assert_array_equal(example["tokens"], [end, *plain.encode("ab"), end, *plain.encode("c"), end])


def test_special_tokens_in_a_text_are_text():
    (example,) = encode("encoder", ["[SEP]"]).examples
    separator = make_tokenizer("encoder").special_id("[SEP]")
    assert (example["tokens"] == separator).sum() == 1


def test_no_sequence_is_empty():
    for architecture in ("encoder", "decoder", "lstm"):
        (example,) = encode(architecture, [""]).examples
        assert example["tokens"].size > 0


def test_a_text_as_long_as_the_model_allows_stays_whole():
    encoded = encode("encoder", ["a" * 14])
    assert encoded.examples[0]["tokens"].size == 16
    assert encoded.cut == 0


def test_a_longer_text_is_an_error_that_says_what_to_do():
    with pytest.raises(UserError) as caught:
        encode("encoder", ["fits", "a" * 15, "b" * 20])
    assert str(caught.value) == (
        "rows.jsonl:2: the text has 17 tokens with the special ones, more than config.model.max_length=16 (2 of 3 "
        "texts are too long, the longest has 22): raise it, or set config.task.truncate=True to truncate them"
    )


def test_truncation_keeps_beginnings_and_counts():
    encoded = encode("encoder", ["fits", "abcdefghijklmnopq"], truncate=True)
    assert encoded.cut == 1
    assert decoded("encoder", ["abcdefghijklmnopq"], truncate=True) == ["[CLS]abcdefghijklmn[SEP]"]


def test_truncated_pairs_lose_tokens_of_the_longer_text_first():
    assert decoded("encoder", ["abcdefghijkl"], ["mnop"], truncate=True) == ["[CLS]abcdefghi[SEP]mnop[SEP]"]
    assert decoded("encoder", ["mnop"], ["abcdefghijkl"], truncate=True) == ["[CLS]mnop[SEP]abcdefghi[SEP]"]
    assert decoded("encoder", ["a" * 20], ["b" * 20], truncate=True) == ["[CLS]aaaaaaa[SEP]bbbbbb[SEP]"]


def test_longest_first_equals_taking_tokens_one_by_one():
    for first in range(8):
        for second in range(8):
            for room in range(2, 10):
                a, b = first, second
                while a + b > room:
                    a, b = (a - 1, b) if a > b else (a, b - 1)
                kept = longest_first(first, second, room)
                assert (kept, min(second, room - kept)) == (a, b)


def test_no_room_for_text_is_an_error():
    with pytest.raises(UserError, match=r"config.model.max_length=4 leaves no room .* next to 3 .* to 5 or more"):
        encode("encoder", ["a"], ["b"], max_length=4)
    assert Layout.of(make_tokenizer("encoder"), "encoder").room(ModelConfig(max_length=5), pair=True) == 2


def test_a_tokenizer_without_any_special_token_is_an_error():
    with pytest.raises(UserError, match=r"neither \[SEP\] nor an end-of-text token: set config.tokenizer.end_of_text"):
        encode("encoder", ["a"], tokenizer=make_tokenizer(end_of_text=False))
