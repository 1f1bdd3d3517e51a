"""Words of text without spaces, and a tokenizer that has learned them."""

import sys

import numpy as np
import pytest

from lm.data.config import TokenizerConfig
from lm.data.segmentation import count_words, segmenter, word_starts
from lm.data.tokenizers import Tokenizer, train_tokenizer
from lm.errors import UserError

TEXTS = ["我喜欢喝绿茶。今天天气很好，我们去北京大学。", "北京大学的学生喜欢喝咖啡 and cats like iPhone 手机。"] * 5


def in_pairs(text):
    return [text[start : start + 2] for start in range(0, len(text), 2)]


def test_pieces_begin_words_wherever_they_are_cut():
    pieces = [b"ab", b"", "中文".encode(), *(bytes([byte]) for byte in "汉字".encode()), "é🙂".encode()]
    found = word_starts(pieces, in_pairs)  # ab 中文 汉字 é🙂
    np.testing.assert_array_equal(found, [1, 1, 1, 1, 0, 0, 0, 0, 0, 1])
    half = "中".encode()[1:], "文a".encode(), b"b"  # a window that begins and ends within characters
    np.testing.assert_array_equal(word_starts(half, in_pairs), [1, 1, 1])


def test_words_are_counted_and_characters_stay():
    known = dict(count_words(["北京"] * 6 + ["大学"] * 3 + ["cat"], limit=8))
    assert {"北", "京", "北京", "大学", "cat"} == known.keys(), "a quarter of the places are for characters"
    assert np.exp(known["北京"]) == pytest.approx(0.6)
    assert known["北"] < known["cat"], "a character that is no word"


def test_a_tokenizer_splits_into_the_words_it_has_learned(tmp_path):
    pytest.importorskip("jieba")
    tokenizer = train_tokenizer(TokenizerConfig(kind="words", vocab_size=90, segmentation="jieba"), lambda split: TEXTS)
    words = {id_: word for word, id_ in tokenizer.vocabulary.items()}
    tokenizer.save(tmp_path / "tokenizer.json")
    for same in (tokenizer, Tokenizer.load(tmp_path / "tokenizer.json")):
        assert [words[id_] for id_ in same.encode("我喜欢北京大学。")] == ["我", "喜欢", "北京大学", "。"]
        assert same.decode(same.encode("学生 like 手机")) == "学生 like 手机"
        assert [words[id_] for id_ in same.encode("龘 dogs <|endoftext|>")][:2] == ["[UNK]", "[UNK]"]
        assert same.end_of_text not in same.encode("<|endoftext|>")
    ids, places = tokenizer.encode_with_offsets("去 北京大学。")
    assert [words[id_] for id_ in ids] == ["去", "北京大学", "。"]
    assert places == [(0, 1), (2, 6), (6, 7)]


def test_the_vocabulary_has_the_size_that_was_asked_for():
    pytest.importorskip("jieba")
    config = TokenizerConfig(kind="words", vocab_size=20, segmentation="jieba")
    assert train_tokenizer(config, lambda split: TEXTS).vocab_size == 20


def test_what_is_missing_or_without_effect_is_one_line(monkeypatch):
    segmenter.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(UserError, match=r"pip install 'calibrated-lm\[chinese\]'"):
        segmenter("jieba")
    with pytest.raises(UserError, match="segmentation is for the kind words, not bpe"):
        TokenizerConfig(kind="bpe", segmentation="jieba")
    with pytest.raises(UserError, match="segmentation must be one of"):
        TokenizerConfig(kind="words", segmentation="mecab")
