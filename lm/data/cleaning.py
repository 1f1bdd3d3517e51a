"""Named cleaning steps: small, pure, composable, and off unless asked for.

A step that changes one document is a function from text to text in `STEPS`. `exact_duplicates` looks at the stream of
documents instead, at its own place among the other steps.
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
# Zero-width joiners and non-joiners spell words in Persian and Indic scripts and join emoji, so they stay.
_JOINERS = "\u200c\u200d"
_WORD = r"(?<!\w)[^\W_](?:[\w']*\w)?"
_WORD_AND_BLANKS = re.compile(rf"({_WORD})[^\S\n]*")
_WORDS = re.compile(_WORD)
_NUMBERS = re.compile(r"(?<!\w)(?<!\w[.,])\d+(?:[.,]\d+)*(?![.,]?\w)")


def nfc(text: str) -> str:
    """Canonical composition (Unicode Annex 15): one code for a letter with its accent. Changes no meaning."""
    return unicodedata.normalize("NFC", text)


def nfkc(text: str) -> str:
    """Compatibility composition: also folds ligatures, full-width letters and superscripts. Loses distinctions."""
    return unicodedata.normalize("NFKC", text)


def control_characters(text: str) -> str:
    """Drops control characters (Cc) but newline and tab, and invisible format characters (Cf) but the two joiners.

    So a carriage return, a byte-order mark, a soft hyphen, a zero-width space (Cf) and direction marks go; U+200C and
    U+200D stay, since words and emoji are spelt with them.
    """
    dropped = {ord(character) for character in set(text) if _is_invisible(character)}
    return text.translate(dict.fromkeys(dropped))


def whitespace(text: str) -> str:
    """Makes runs of blanks one space, strips blanks at line ends, and keeps at most one blank line in a row.

    A no-break space or a tab is a blank too, so indentation is lost: this is for prose, not for code.
    """
    text = _TRAILING_BLANKS.sub("", _BLANKS.sub(" ", text))
    return _BLANK_LINES.sub("\n\n", text)


def lowercase(text: str) -> str:
    """Lower case by Unicode's default mapping, without regard to language."""
    return text.lower()


def numbers(text: str) -> str:
    """Drops numbers that stand alone, with the points and commas in them; "b2b" and "1990s" stay."""
    return _NUMBERS.sub("", text)


def punctuation(text: str) -> str:
    """Makes each mark and symbol (Unicode's P and S) a space, apostrophes and hyphens too."""
    marks = {ord(character) for character in set(text) if unicodedata.category(character)[0] in "PS"}
    return text.translate(dict.fromkeys(marks, " "))


def english_stop_words(text: str) -> str:
    """Drops scikit-learn's English stop words, in upper or lower case, "not" and "no" among them."""
    stop_words = _english_stop_words()
    return _WORD_AND_BLANKS.sub(lambda found: "" if found[1].lower() in stop_words else found[0], text)


def english_stemming(text: str) -> str:
    """Makes each word its stem in lower case, by the Snowball stemmer for English (Porter 2001)."""
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
    """Applies the steps in order to every document, and drops the documents that are left empty.

    Args:
      documents: texts.
      steps: names of `STEPS` or `exact_duplicates`, which keeps the first of equal documents.
      seen: digests of documents already met, shared and added to by `exact_duplicates`. Passing the set that the
        training split filled drops from validation what training has.

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


@functools.lru_cache(maxsize=2**16)  # a stem takes the library 0.1 ms, and most words have been seen before
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
