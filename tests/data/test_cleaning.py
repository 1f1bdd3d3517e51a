"""Cleaning steps compose, are pure, and are off unless asked for."""

import sys

import pytest

from lm.data import cleaning
from lm.data.cleaning import STEPS, clean
from lm.errors import UserError

AWKWARD = "Cafe\u0301 \ufb01n\u200b \t x\u00a0y  \r\n\n\n\n\nZ\x00\u00ad\u200dE \u2028 1\ufeff  "


@pytest.mark.parametrize(
    ("step", "text", "cleaned"),
    [
        ("nfc", "e\u0301 \ufb01", "\u00e9 \ufb01"),
        ("nfkc", "e\u0301 \ufb01", "\u00e9 fi"),
        ("control_characters", "a\x00b\r\n\tc\u00ad\u200b\ufeffd", "ab\n\tcd"),
        ("control_characters", "\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
        ("whitespace", "a \t\u00a0b  \n\n\n\n c ", "a b\n\n c"),
        ("lowercase", "ÀB", "àb"),
        ("numbers", "in 1999, 3,000.5 of b2b, 1990s 7.", "in ,  of b2b, 1990s ."),
        ("punctuation", "well-known: 'a_b' costs €5!", "well known   a b  costs  5 "),
        ("english_stop_words", "The cat's on it.\nIt isn't the END of another", "cat's .\nisn't END "),
        ("english_stop_words", "theory his_name _the 'The' can't", "theory his_name _the '' can't"),
        ("english_stemming", "Running cats' ponies, naïve 42s", "run cat' poni, naïv 42s"),
        ("german_stemming", "Die Häuser der aufeinanderfolgenden", "die haus der aufeinanderfolg"),
        ("russian_stemming", "Красивые кошки", "красив кошк"),
        ("hindi_stemming", "लड़कियाँ किताबें", "लड़क किताब"),  # words with vowel signs, which are not letters
        ("german_stop_words", "Das ist ein Haus, nicht Hof.", "Haus, Hof."),
        ("hindi_stop_words", "यह एक किताब है", "किताब "),
    ],
)
def test_one_step(step, text, cleaned):
    assert list(clean([text], [step])) == [cleaned]


@pytest.mark.parametrize("step", STEPS)
def test_steps_are_idempotent(step):
    if step.endswith("_stop_words"):
        pytest.importorskip("stopwordsiso")
    once = STEPS[step](AWKWARD)
    assert STEPS[step](once) == once


def test_no_steps_change_nothing_but_empty_documents():
    assert list(clean([AWKWARD, "", AWKWARD], [])) == [AWKWARD, AWKWARD]


def test_documents_that_become_empty_are_dropped():
    assert list(clean(["\x00", "a"], ["control_characters"])) == ["a"]


def test_steps_apply_in_order():
    assert list(clean(["A", "a"], ["exact_duplicates", "lowercase"])) == ["a", "a"]
    assert list(clean(["A", "a"], ["lowercase", "exact_duplicates"])) == ["a"]


def test_duplicates_keep_the_first_and_training_comes_first():
    seen = set()
    assert list(clean(["a", "b", "a"], ["exact_duplicates"], seen)) == ["a", "b"]
    assert list(clean(["b", "c", "c"], ["exact_duplicates"], seen)) == ["c"]


def test_stop_words_that_are_not_installed_are_one_line(monkeypatch):
    cleaning._stop_words.cache_clear()
    monkeypatch.setitem(sys.modules, "stopwordsiso", None)
    with pytest.raises(UserError, match=r"italian_stop_words needs .*: pip install 'calibrated-lm\[languages\]'"):
        list(clean(["Il gatto"], ["italian_stop_words"]))


def test_unknown_step_lists_the_known_ones():
    with pytest.raises(UserError, match=r"no step 'stem'.*nfc, nfkc, .*exact_duplicates"):
        clean(["a"], ["stem"])
