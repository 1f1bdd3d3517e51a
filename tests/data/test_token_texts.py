"""Where words and sentences end, as the vocabularies of every kind of tokenizer tell it."""

import numpy as np
import pytest

from lm.data.config import TokenizerConfig
from lm.data.token_texts import WordBorders, ordinary_tokens, sentence_ends, token_texts
from lm.data.tokenizers import train_tokenizer

TEXTS = [
    "the unknowable café, it said. def reader(name):\n    return name1 ! ## it said\n",
    "it was known by name . ",
] * 5
TEXT = "the unknown café, said reader(name):\n    it is ! reader"
WORDS = ["the", "unknown", "café", ",", "said", "reader", "(", "name", ")", ":", "it", "is", "!", "reader"]


def tokenizer_of(kind):
    config = TokenizerConfig(kind=kind, vocab_size={"wordpiece": 120, "words": 40}.get(kind, 290))
    return train_tokenizer(config, lambda split: TEXTS).with_special_tokens(["[MASK]"])


@pytest.fixture(scope="module", params=["bytes", "characters", "bpe", "unigram", "wordpiece"])
def tokenizer(request):
    return tokenizer_of(request.param)


def test_words_are_found_again(tokenizer):
    text = TEXT.replace("unknown", "unknowable").replace("is", "it")
    ids = np.array([tokenizer.encode(text)])
    begins = WordBorders.of(tokenizer).begins(ids)[0]
    words, numbers = [], np.cumsum(begins) - 1
    for number in range(numbers[-1] + 1):
        words.append(tokenizer.decode(ids[0][numbers == number].tolist()).strip())
    joined = [word for word in words if word and word[-1].isalnum()]
    expected = [word.replace("unknown", "unknowable") for word in WORDS if word.isalnum()]
    assert [word.split(" ")[-1] for word in joined] == [word.replace("is", "it") for word in expected]


def test_every_whole_word_is_a_word():
    tokenizer = tokenizer_of("words")
    assert WordBorders.of(tokenizer).begins(np.array([tokenizer.encode("it said name")])).all()


def test_sentences_end_at_full_stops_and_line_breaks(tokenizer):
    ends, texts = sentence_ends(tokenizer), token_texts(tokenizer)
    assert tokenizer.vocab_size == len(ends) == len(texts)
    for text in (".", "!"):
        assert ends[tokenizer.encode(text)].all()
    assert not ends[tokenizer.encode("it")].any()
    ids = tokenizer.encode("said.\n    return")
    if "\n" in tokenizer.decode(ids):  # WordPiece drops line breaks
        assert ends[[id_ for id_ in ids if "\n" in texts[id_]]].any()


def test_special_tokens_are_not_ordinary(tokenizer):
    ordinary = ordinary_tokens(tokenizer)
    special = [tokenizer.end_of_text, tokenizer.special_id("[MASK]")]
    assert not ordinary[special].any()
    unknown = tokenizer.special_id("[UNK]") is not None
    assert ordinary.sum() == len(tokenizer.vocabulary) - 2 - unknown
