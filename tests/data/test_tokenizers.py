"""Tokenizers: lossless where promised, deterministic, and never fooled by text that spells a special token."""

import json
import re
import time

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from lm.data.config import TokenizerConfig
from lm.data.files import note
from lm.data.special_tokens import END_OF_TEXT, UNKNOWN
from lm.data.tokenizers import Tokenizer, train_tokenizer
from lm.data.trained_backends import _in_short_pieces
from lm.errors import UserError

AWKWARD = [
    "plain text",
    "  two  spaces\n\n\ttabs \r\n ",
    "naïve café e\u0301 \u00a0 日本語 \U0001f468\u200d\U0001f469\u200d\U0001f467 \ufeff\u200b",
    "\x00\x01\x7f\uffff\U0010ffff",
    f"a {END_OF_TEXT} b </s>",
    "don't we'll 12345 x_y ĠĊ",
]
LOSSLESS = ["bytes", "characters", "bpe", "unigram"]
KINDS = [*LOSSLESS, "wordpiece", "words"]


def documents(split):
    return AWKWARD * 20 + [f"word{i} and {i * i}" for i in range(200)]


def make(kind, **values):
    return train_tokenizer(TokenizerConfig(**{"kind": kind, "vocab_size": 400} | values), documents)


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("end_of_text", [True, False])
def test_decoding_gives_back_the_text(kind, end_of_text, tmp_path):
    tokenizer = make(kind, end_of_text=end_of_text)
    tokenizer.save(tmp_path / "tokenizer.json")
    for each in (tokenizer, Tokenizer.load(tmp_path / "tokenizer.json")):
        assert [each.decode(ids) for ids in each.encode_batch(AWKWARD)] == AWKWARD
        assert (each.end_of_text is not None) == end_of_text
        assert each.vocab_size == tokenizer.vocab_size
        assert each.digest == tokenizer.digest


@pytest.mark.parametrize("kind", KINDS)
def test_text_never_becomes_a_special_token(kind, tmp_path):
    make(kind).save(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    assert tokenizer.end_of_text is not None
    assert tokenizer.end_of_text not in tokenizer.encode(f"{END_OF_TEXT}x {END_OF_TEXT}")


@pytest.mark.parametrize("kind", KINDS)
def test_ids_fit_the_vocabulary(kind):
    tokenizer = make(kind)
    assert max(max(ids) for ids in tokenizer.encode_batch(AWKWARD)) < tokenizer.vocab_size
    assert tokenizer.end_of_text < tokenizer.vocab_size


def test_vocabulary_sizes():
    assert make("bytes").vocab_size == 257
    assert make("bytes", end_of_text=False).vocab_size == 256
    assert make("characters", end_of_text=False).vocab_size == len(set("".join(documents("train"))))
    for kind in ("bpe", "unigram"):
        assert make(kind).vocab_size == 400
    assert make("wordpiece").vocab_size <= 400


def test_bytes_are_bytes():
    tokenizer = make("bytes")
    for text in AWKWARD:
        assert len(tokenizer.encode(text)) == len(text.encode())


def test_bpe_training_is_deterministic_and_spans_no_unknown():
    assert make("bpe").digest == make("bpe").digest
    assert make("bpe").decode(make("bpe").encode("ελληνικά")) == "ελληνικά"


def test_characters_come_from_both_splits():
    tokenizer = train_tokenizer(
        TokenizerConfig("characters", end_of_text=False), lambda split: ["ab"] if split == "train" else ["c"]
    )
    assert tokenizer.encode("cab") == [2, 0, 1]


def test_unknown_character_is_named():
    with pytest.raises(UserError, match=r"'ß' \(U\+00DF\)"):
        make("characters").encode("done ßg")


def test_wordpiece_marks_what_it_cannot_spell():
    tokenizer = make("wordpiece")
    assert tokenizer.decode(tokenizer.encode("word1 and"), skip_special_tokens=False) == "word1 and"
    assert tokenizer.decode(tokenizer.encode("ψ"), skip_special_tokens=False) == "[UNK]"


@pytest.mark.parametrize("length", [120, 700])
def test_wordpiece_spells_long_words(length):
    texts = ["a b c ab ca abc bca"] * 9
    tokenizer = train_tokenizer(TokenizerConfig("wordpiece", vocab_size=40), texts)
    word = ("abc" * length)[:length]
    tokens = tokenizer.decode(tokenizer.encode(word), skip_special_tokens=False)
    assert tokens.replace(" ", "") == word


def test_bpe_training_on_one_long_line_is_quick(capsys):
    note.cache_clear()
    random = np.random.default_rng(0)
    text = "".join(random.choice(list("acgt"), 200_000)) + " " * 5000 + "end"
    begin = time.perf_counter()
    tokenizer = train_tokenizer(TokenizerConfig("bpe", vocab_size=300), [text])
    assert time.perf_counter() - begin < 10  # without limits on pieces, minutes
    assert tokenizer.vocab_size == 300
    assert tokenizer.decode(tokenizer.encode(text[-9000:])) == text[-9000:]
    assert "use config.tokenizer.kind=bytes" in capsys.readouterr().err


def test_pieces_for_training_join_to_the_text():
    text = "short words " + "x" * 2500 + " " * 1000 + "\nyz" * 1000
    pieces = list(_in_short_pieces([text, "plain"]))
    assert "".join(pieces) == f"{text}plain"
    assert pieces[-1] == "plain"
    assert max(len(run) for piece in pieces for run in re.findall(r"\S+|\s+", piece)) == 1000


@pytest.mark.parametrize("number", [2**31, -1, 0, 2**64, 1.5, None])
def test_ids_that_no_model_can_have_are_refused(number, tmp_path):
    make("words").save(tmp_path / "tokenizer.json")
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["model"]["vocab"]["and"] = number
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"is not a tokenizer\.json of the tokenizers library: "):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_missing_unknown_token_is_found_when_a_tokenizer_is_read(tmp_path):
    Backend(models.WordPiece({"a": 0}, unk_token="[UNK]")).save(str(tmp_path / "a.json"))
    with pytest.raises(UserError, match=r"a.json is not a tokenizer.json .*Missing \[UNK\]"):
        Tokenizer.load(tmp_path / "a.json")


def test_foreign_file(tmp_path):
    backend = Backend(models.WordLevel({"a": 0, "[UNK]": 7, "[SEP]": 9}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[SEP]"])
    backend.enable_truncation(1)
    backend.enable_padding(length=5)
    path = tmp_path / "foreign.json"
    backend.save(str(path))
    tokenizer = train_tokenizer(TokenizerConfig("file", path=str(path)), documents)
    assert tokenizer.vocab_size == 10
    assert tokenizer.end_of_text == 9
    assert tokenizer.encode("a b") == [0, 7]
    assert train_tokenizer(TokenizerConfig("file", path=str(path), end_of_text=False), documents).end_of_text is None


def test_a_plain_token_does_not_end_documents(tmp_path):
    backend = Backend(models.WordLevel({"</s>": 0, "x": 1}, unk_token="x"))
    backend.add_tokens(["</s>"])
    backend.save(str(tmp_path / "plain.json"))
    assert Tokenizer.load(tmp_path / "plain.json").end_of_text is None


def test_save_replaces_the_whole_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("old")
    make("bytes").save(path)
    assert Tokenizer.load(path).vocab_size == 257
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff", b'{"model": {"type": "BPE"}'])
def test_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        Tokenizer.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_words_are_the_most_frequent():
    texts = ["b b b, a a, c", "d b"]
    tokenizer = train_tokenizer(TokenizerConfig("words", vocab_size=5), texts)
    assert set(tokenizer.vocabulary) == {UNKNOWN, END_OF_TEXT, "b", "a", ","}
    assert tokenizer.decode(tokenizer.encode("a,c B"), skip_special_tokens=False) == "a , [UNK] [UNK]"


def test_an_iterable_is_the_training_documents():
    assert train_tokenizer(TokenizerConfig("characters", end_of_text=False), iter(["ba", "c"])).encode("cab") == [
        2,
        0,
        1,
    ]


@pytest.mark.parametrize("kind", ["wordpiece", "words"])
def test_lowercase_leaves_accents(kind):
    tokenizer = train_tokenizer(TokenizerConfig(kind, vocab_size=50, lowercase=True), ["Été ÉTÉ ete"] * 9)
    assert tokenizer.encode("ÉTÉ") == tokenizer.encode("été") != tokenizer.encode("ete")
    assert tokenizer.vocabulary.get("été") == tokenizer.encode("Été")[0]


def test_words_split_at_white_space_only():
    tokenizer = train_tokenizer(TokenizerConfig("words", split_punctuation=False), ["do n't stop", "well-known ."])
    assert tokenizer.decode(tokenizer.encode("do n't . well-known don't")) == "do n't . well-known"


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_come_last_and_text_cannot_spell_them(kind, tmp_path):
    names = ["[CLS]", "[SEP]", END_OF_TEXT]
    plain = make(kind)
    tokenizer = plain.with_special_tokens(names)
    assert plain.special_id("[CLS]") is None
    assert [tokenizer.special_id(name) for name in names] == [plain.vocab_size, plain.vocab_size + 1, plain.end_of_text]
    assert tokenizer.vocab_size == plain.vocab_size + 2
    tokenizer.save(tmp_path / "tokenizer.json")
    for each in (tokenizer, Tokenizer.load(tmp_path / "tokenizer.json")):
        assert each.digest == tokenizer.digest
        assert each.end_of_text == plain.end_of_text
        assert [each.special_id(name) for name in names] == [tokenizer.special_id(name) for name in names]
        assert each.encode_batch(AWKWARD) == plain.encode_batch(AWKWARD)
    assert tokenizer.with_special_tokens(names) is tokenizer


def test_words_that_look_like_special_tokens_are_unknown():
    texts = [f"[SEP] {END_OF_TEXT} word"] * 9
    tokenizer = train_tokenizer(TokenizerConfig("words", split_punctuation=False), texts).with_special_tokens(["[SEP]"])
    unknown = tokenizer.special_id(UNKNOWN)
    assert tokenizer.encode(f"[SEP] {END_OF_TEXT} word") == [unknown, unknown, tokenizer.vocabulary["word"]]
    assert tokenizer.encode_words(["[SEP]", "word"])[0] == [unknown, tokenizer.vocabulary["word"]]
    assert tokenizer.encode_with_offsets("[SEP]")[0] == [unknown]


@pytest.mark.parametrize("kind", KINDS)
def test_every_word_has_its_tokens(kind):
    tokenizer = make(kind)
    words = ["don't", "word3", "naïve", "日本語", "and"]
    ids, numbers = tokenizer.encode_words(words)
    assert len(ids) == len(numbers)
    assert sorted(set(numbers)) == list(range(len(words)))
    assert numbers == sorted(numbers)
    if kind in ("bytes", "bpe", "unigram"):
        assert tokenizer.decode(ids) == " ".join(words)
    first = tokenizer.encode(words[0])
    assert ids[: len(first)] == first


@pytest.mark.parametrize("kind", ["wordpiece", "words"])
def test_a_word_of_nothing_is_unknown(kind):
    tokenizer = make(kind)
    ids, numbers = tokenizer.encode_words(["and", "\x00", "\u200b", "and"])
    unknown = tokenizer.special_id(UNKNOWN)
    assert ids[1:-1] == [unknown, unknown]
    assert numbers == [0, 1, 2, 3]


def test_a_word_of_nothing_without_an_unknown_token_is_named():
    with pytest.raises(UserError, match="the word '' has no tokens"):
        make("bpe").encode_words(["", "x"])


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_are_characters_of_the_text(kind):
    tokenizer = make(kind, lowercase=True) if kind in ("wordpiece", "words") else make(kind)
    text = "  naïve CAFÉ \u00a0 日本語\n\U0001f468\u200d\U0001f469 word12 and"
    known = set("".join(documents("train")))
    text = "".join(character for character in text if character in known) if kind == "characters" else text
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    assert len(ids) == len(offsets)
    covered = {place for start, end in offsets for place in range(start, end)}
    assert covered == {place for place, character in enumerate(text) if not character.isspace()}
    assert offsets == sorted(offsets)
    assert all(text[start:end] == text[start:end].strip() for start, end in offsets)
    first = text.index("and")
    inside = [(start, end) for start, end in offsets if end > first]
    assert (inside[0][0], inside[-1][1]) == (first, len(text))
