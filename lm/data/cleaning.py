"""Named cleaning steps: small, pure, composable, and off unless asked for.

A step that changes one document is a function from text to text in `STEPS`. `exact_duplicates` filters the stream of
documents instead, in its place among the other steps.
"""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from lm.errors import UserError

_BLANKS = re.compile(r"[^\S\n]+")
_TRAILING_BLANKS = re.compile(r" +(?=\n|\Z)")
_BLANK_LINES = re.compile(r"\n{3,}")
# Zero-width joiners and non-joiners are part of words in Persian and Indic scripts and of emoji, so they stay.
_JOINERS = "\u200c\u200d"
_WORD = r"(?<!\w)[^\W_](?:[\w']*\w)?"
_WORD_AND_BLANKS = re.compile(rf"({_WORD})[^\S\n]*")
_WORDS = re.compile(_WORD)
_NUMBERS = re.compile(r"(?<!\w)(?<!\w[.,])\d+(?:[.,]\d+)*(?![.,]?\w)")


def nfc(text: str) -> str:
    """Canonical composition (Unicode Annex 15): one code point per accented letter. The meaning stays."""
    return unicodedata.normalize("NFC", text)


def nfkc(text: str) -> str:
    """Compatibility composition: also folds ligatures, full-width letters and superscripts. Loses distinctions."""
    return unicodedata.normalize("NFKC", text)


def control_characters(text: str) -> str:
    """Drops control (Cc) and invisible format (Cf) characters, except newline, tab and the two joiners.

    This removes carriage returns, byte-order marks, soft hyphens, zero-width spaces and direction marks. U+200C and
    U+200D stay, since some words and emoji need them.
    """
    dropped = {ord(character) for character in set(text) if _is_invisible(character)}
    return text.translate(dict.fromkeys(dropped))


def whitespace(text: str) -> str:
    """Collapses runs of blanks to one space, strips trailing blanks, and keeps at most one blank line in a row.

    No-break spaces and tabs count as blanks, so indentation is lost: use this for prose, not for code.
    """
    text = _TRAILING_BLANKS.sub("", _BLANKS.sub(" ", text))
    return _BLANK_LINES.sub("\n\n", text)


def lowercase(text: str) -> str:
    """Lower case by Unicode's default mapping, whatever the language."""
    return text.lower()


def numbers(text: str) -> str:
    """Drops standalone numbers, including their points and commas; "b2b" and "1990s" stay."""
    return _NUMBERS.sub("", text)


def punctuation(text: str) -> str:
    """Replaces each punctuation mark and symbol (Unicode's P and S) by a space, including apostrophes and hyphens."""
    marks = {ord(character) for character in set(text) if unicodedata.category(character)[0] in "PS"}
    return text.translate(dict.fromkeys(marks, " "))


def english_stop_words(text: str) -> str:
    """Drops scikit-learn's English stop words, in upper or lower case, "not" and "no" among them."""
    stop_words = _english_stop_words()
    return _WORD_AND_BLANKS.sub(lambda found: "" if found[1].lower() in stop_words else found[0], text)


def english_stemming(text: str) -> str:
    """Replaces each word by its lower-case stem, using the Snowball stemmer for English (Porter 2001)."""
    return _WORDS.sub(lambda found: _english_stem(found[0].lower()), text)


STEPS: dict[str, Callable[[str], str]] = {
    "nfc": nfc,
    "nfkc": nfkc,
    "control_characters": control_characters,
    "whitespace": whitespace,
    "lowercase": lowercase,
    "numbers": numbers,
    "punctuation": punctuation,
    "english_stop_words": english_stop_words,
    "english_stemming": english_stemming,
}
STREAM_STEPS = ("exact_duplicates",)


def clean(documents: Iterable[str], steps: Iterable[str], seen: set[bytes] | None = None) -> Iterator[str]:
    """Applies the steps in order to every document and drops documents that end up empty.

    Args:
      documents: texts.
      steps: names of `STEPS` or `exact_duplicates`, which keeps the first of equal documents.
      seen: digests of documents seen so far, which `exact_duplicates` reads and extends. Pass the training split's set
        to drop training documents from validation.

    Yields:
      The cleaned documents that are not empty, in order.

    Raises:
      UserError: if a step is unknown.
    """
    steps = tuple(steps)
    check_steps(steps)
    seen = set() if seen is None else seen
    for name in steps:
        documents = _exact_duplicates(documents, seen) if name in STREAM_STEPS else map(STEPS[name], documents)
    return filter(None, documents)


def check_steps(steps: Iterable[str]):
    """Raises UserError, with the known names, if one of `steps` is not a cleaning step."""
    known = (*STEPS, *STREAM_STEPS)
    for name in steps:
        if name not in known:
            raise UserError(f"config.data.cleaning has no step {name!r}: known steps are {', '.join(known)}")


@functools.cache
def _english_stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # takes a second, and only this step needs it

    return ENGLISH_STOP_WORDS


@functools.cache
def _english_stemmer():
    import snowballstemmer

    return snowballstemmer.stemmer("english")


@functools.lru_cache(maxsize=2**16)  # the library takes 0.1 ms for a stem, and most words repeat
def _english_stem(word: str) -> str:
    return _english_stemmer().stemWord(word)


def _exact_duplicates(documents: Iterable[str], seen: set[bytes]) -> Iterator[str]:
    for document in documents:
        digest = hashlib.blake2b(document.encode(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            yield document


def _is_invisible(character: str) -> bool:
    if character in "\n\t" or character in _JOINERS:
        return False
    return unicodedata.category(character) in ("Cc", "Cf")
