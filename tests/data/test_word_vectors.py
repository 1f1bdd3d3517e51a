"""Word vectors: both formats, what a vocabulary gets of them, and files that are damaged."""

import bz2
import gzip

import numpy as np
import pytest

from lm.data.word_vectors import Coverage, embedding_from_vectors, first_words, read_word_vectors
from lm.errors import UserError

GLOVE = "the 0.5 -1 2e-1\ncat 1 2 3\n. . . 7 8 9\nCAT 4 5 6\nuni\u2028code 0 0 1\n"
VOCABULARY = {"[UNK]": 0, "the": 1, "Cat": 2, "CAT": 3, "dog": 4}
COUNTS = np.array([2, 10, 5, 0, 3, 0, 0])  # V is larger than the vocabulary, as where the table is padded


def write(folder, content, name="vectors.txt"):
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.txt.gz"])
def test_reads_the_words_asked_for(name, tmp_path):
    found = read_word_vectors(write(tmp_path, GLOVE, name), ["cat", "dog", "the", ". . .", "uni\u2028code", "."])
    assert set(found) == {"the", "cat", ". . .", "uni\u2028code"}
    np.testing.assert_allclose(found["the"], [0.5, -1, 0.2])
    np.testing.assert_array_equal(found[". . ."], [7, 8, 9])
    np.testing.assert_array_equal(found["uni\u2028code"], [0, 0, 1])
    assert found["cat"].dtype == np.float32


def test_reads_the_format_of_word2vec_with_its_spaces_at_line_ends(tmp_path):
    found = read_word_vectors(write(tmp_path, "2 3\nin 1 2 3 \nNew York 4 5 6 \n"), ["in", "New York", "2"])
    assert {word: vector.tolist() for word, vector in found.items()} == {"in": [1, 2, 3], "New York": [4, 5, 6]}


def test_the_first_vector_of_a_word_counts(tmp_path):
    assert read_word_vectors(write(tmp_path, "a 1 2\na 3 4\n"), ["a"])["a"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a 1 2\nb 1\n", r"{path}:2: 1 numbers after the word, expected 2"),
        ("a 1 2\nb 1 x\n", r"{path}:2: could not convert .*'x'"),
        ("a 1 2\nb 1 nan\n", r"{path}:2: .*not finite"),
        ("a 1 2\nb 1 1_0\n", r"{path}:2: could not convert"),
        ("a 1 2\nb 1 1e99\n", r"{path}:2: .*not finite"),
        (f"{'9' * 5000} 2\nb 1 2\n", r"{path} has 1 vectors but its first line says 999,"),
        ("a\n", r"{path}:1: expected a word and its numbers"),
        ("", r"{path} has no word vectors"),
        ("3 2\na 1 2\nb 1 2\n", r"{path} has 2 vectors but its first line says 3: download it again"),
        (b"3 2\na \x00\x01\x02\x03", r"{path}:2: 1 numbers after the word, expected 2: .* not in the text format"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(content, message, tmp_path):
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=message.format(path=path)) as caught:
        read_word_vectors(path, ["b"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encode", [lambda text: b"\xef\xbb\xbf" + text, bz2.compress, lambda text: text + b"\n\n"])
def test_marks_compression_and_blank_lines_do_not_count(encode, tmp_path):
    for header in (b"", b"2 2\n"):
        path = write(tmp_path, encode(header + b"a 1 2\nb 3 4\n"))
        found = read_word_vectors(path, ["a", "b"])
        assert {word: vector.tolist() for word, vector in found.items()} == {"a": [1, 2], "b": [3, 4]}


def test_a_file_that_is_missing_or_cut_off_is_named(tmp_path):
    with pytest.raises(UserError, match=f"cannot read {tmp_path}/none.txt: .*No such file"):
        read_word_vectors(tmp_path / "none.txt", ["a"])
    path = write(tmp_path, GLOVE * 100, "vectors.txt.gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"cannot read {path}"):
        read_word_vectors(path, ["a"])
    path.write_text("no gzip")
    with pytest.raises(UserError, match=f"cannot read {path}"):
        read_word_vectors(path, ["a"])


def test_a_token_takes_the_vector_of_its_word_else_of_its_lower_case_form(tmp_path):
    table, coverage = embedding_from_vectors(write(tmp_path, GLOVE), VOCABULARY, COUNTS, seed=0)
    assert table.shape == (7, 3)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table[1], [0.5, -1, 0.2])
    np.testing.assert_array_equal(table[2], [1, 2, 3])
    np.testing.assert_array_equal(table[3], [4, 5, 6])
    assert coverage == Coverage(3 / 5, 15 / 20, ("dog", "[UNK]"))
    assert str(coverage) == "60.0% of the vocabulary and 75.0% of running tokens have one; without one: dog [UNK]"


def test_other_rows_are_random_like_the_vectors_and_a_function_of_the_seed(tmp_path):
    vectors = np.random.default_rng(0).normal(scale=0.3, size=(200, 50))
    lines = [f"w{i} {' '.join(map(str, vector))}" for i, vector in enumerate(vectors)]
    path = write(tmp_path, "\n".join(lines))
    vocabulary = {f"w{i}": i for i in range(400)}
    table, _ = embedding_from_vectors(path, vocabulary, np.ones(400), seed=0)
    np.testing.assert_allclose(table[:200], vectors, rtol=1e-5)
    # 10,000 draws: six standard errors of the deviation are 4%.
    np.testing.assert_allclose(table[200:].std(), vectors.std(), rtol=0.05)
    assert abs(table[200:].mean()) < 0.02
    np.testing.assert_array_equal(embedding_from_vectors(path, vocabulary, np.ones(400), seed=0)[0], table)
    assert np.abs(embedding_from_vectors(path, vocabulary, np.ones(400), seed=1)[0] - table)[200:].min(axis=1).max() > 0


def test_vectors_of_no_token_at_all_are_an_error(tmp_path):
    with pytest.raises(UserError, match=r"has no vector for any of the vocabulary's 2 tokens: use .*kind=words"):
        embedding_from_vectors(write(tmp_path, GLOVE), {"\u0120the": 0, "x": 1}, np.ones(2), 0)


def test_every_id_needs_a_count(tmp_path):
    with pytest.raises(ValueError, match="4 counts for ids up to 4"):
        embedding_from_vectors(write(tmp_path, GLOVE), VOCABULARY, COUNTS[:4], 0)


def test_first_words_are_those_of_the_first_lines(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("3 2\nthe 1 2\nof 3 4\nparis 5 6\n", encoding="utf-8")
    assert first_words(path, 2) == ["the", "of"]
    assert first_words(path, 9) == ["the", "of", "paris"]
    path.write_text("the 1 2\nof 3\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"vectors\.txt:2: 1 numbers after the word, expected 2"):
        first_words(path, 2)
