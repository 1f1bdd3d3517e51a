"""Where words and sentences end, as the vocabularies of every kind of tokenizer tell it."""

import numpy as np
import pytest

from lm.data.config import TokenizerConfig
from lm.data.token_texts import WordBorders, ordinary_tokens, sentence_ends, token_bytes, token_texts
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


CHINESE = ["我们喜欢北京大学。", "他们在 Paris 喝咖啡", "東京タワー"] * 5


def words_by(tokenizer, text, **how):
    ids = np.array([tokenizer.encode(text)])
    begins = WordBorders.of(tokenizer, **how).begins(ids)[0]
    spelled = token_bytes(tokenizer)
    parts = np.split(ids[0], np.flatnonzero(begins)[1:])
    return [b"".join(spelled[id_] for id_ in part).decode().strip() for part in parts]


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe", "wordpiece"])
def test_chinese_words_are_characters_or_what_a_segmenter_finds(kind):
    pytest.importorskip("jieba")
    config = TokenizerConfig(kind=kind, vocab_size={"wordpiece": 200}.get(kind, 257))
    tokenizer = train_tokenizer(config, lambda split: CHINESE)
    assert words_by(tokenizer, "我们喜欢北京大学。") == list("我们喜欢北京大学。")
    assert words_by(tokenizer, "我们喜欢北京大学。", segmentation="jieba") == ["我们", "喜欢", "北京大学", "。"]
    mixed = words_by(tokenizer, "在 Paris 喝咖啡", segmentation="jieba")
    assert [word for word in mixed if word] == ["在", "Paris", "喝咖啡"]


def test_bytes_of_tokens_spell_every_text():
    text = "aé中🙂\u0800\U0010ffff\n\t ÿ"
    for kind in ("bytes", "bpe"):
        tokenizer = train_tokenizer(TokenizerConfig(kind=kind, vocab_size=257), lambda split: [text])
        spelled = token_bytes(tokenizer)
        assert b"".join(spelled[id_] for id_ in tokenizer.encode(text)) == text.encode()
        assert spelled[tokenizer.end_of_text] == b""
