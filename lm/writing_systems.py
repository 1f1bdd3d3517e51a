"""Writing systems: which letters a text is written in, and which of them have no spaces between words.

A letter's system is the beginning of its name in Unicode: LATIN, CYRILLIC, CJK (Chinese characters), HIRAGANA, THAI.
"""

import functools
import unicodedata
from collections import Counter
from collections.abc import Iterable

# Chinese characters and their marks, then Japanese kana, and the scripts of South-East Asia and Tibet.
CHINESE = ("CJK", "IDEOGRAPHIC")
KANA = ("HIRAGANA", "KATAKANA")
SPACELESS = (*CHINESE, *KANA, "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


@functools.lru_cache(maxsize=2**16)
def system_of(character: str) -> str:
    """The writing system of a letter or a mark; "" for white space, digits, punctuation and symbols."""
    if unicodedata.category(character)[0] not in "LM":
        return ""
    plain = unicodedata.normalize("NFKC", character)  # half- and full-width forms are named by their width
    return unicodedata.name(plain[0] if plain.strip() else character, "").split(" ")[0].split("-")[0]


def is_spaceless(character: str) -> bool:
    """Whether it is written without spaces between words."""
    return system_of(character) in SPACELESS


def count_systems(texts: Iterable[str]) -> Counter[str]:
    """How many letters of each writing system there are, marks left out."""
    characters = Counter(character for text in texts for character in text if character.isalpha())
    systems: Counter[str] = Counter()
    for character, count in characters.items():
        systems[system_of(character)] += count
    return systems


def words_and_characters(text: str) -> list[str]:
    """Words between white space; each character of a spaceless system is one of its own."""
    return "".join(f" {each} " if is_spaceless(each) else each for each in text).split()
