"""Letters know their writing system, and whether it puts spaces between words."""

import pytest

from lm.writing_systems import count_systems, is_spaceless, system_of, words_and_characters


@pytest.mark.parametrize(
    ("character", "system"),
    [
        *(("a", "LATIN"), ("ß", "LATIN"), ("Ａ", "LATIN"), ("я", "CYRILLIC"), ("中", "CJK"), ("々", "IDEOGRAPHIC")),
        *(("か", "HIRAGANA"), ("カ", "KATAKANA"), ("ｶ", "KATAKANA"), ("ー", "KATAKANA"), ("한", "HANGUL")),
        *(("ก", "THAI"), ("\u0e34", "THAI"), ("7", ""), (" ", ""), ("。", ""), ("🙂", ""), ("\ue000", "")),
    ],
)
def test_system(character, system):
    assert system_of(character) == system


def test_spaceless_characters_are_words_of_their_own():
    assert words_and_characters("iPhone 15在北京") == ["iPhone", "15", "在", "北", "京"]
    assert words_and_characters("한국어 텍스트") == ["한국어", "텍스트"]
    assert not is_spaceless("한")


def test_letters_are_counted_by_system():
    assert count_systems(["ab, я 12", "中a"]) == {"LATIN": 3, "CYRILLIC": 1, "CJK": 1}
