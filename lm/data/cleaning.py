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
# Marks, such as the vowels of Hindi and Tamil, are parts of words; Python's \w leaves them out.
_MARKS = "".join(chr(point) for point in range(0x300, 0x1E00) if unicodedata.category(chr(point))[0] == "M")
_WORD = rf"(?<!\w)[^\W_](?:[\w'{_MARKS}{_JOINERS}]*[\w{_MARKS}])?"
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


def stop_words(text: str, language: str) -> str:
    """Drops a language's stop words, in upper or lower case; English ones are scikit-learn's, "not" among them.

    Raises:
      UserError: for another language than English if the package stopwordsiso is not installed.
    """
    known = _stop_words(language)
    return _WORD_AND_BLANKS.sub(lambda found: "" if found[1].lower() in known else found[0], text)


def stemming(text: str, language: str) -> str:
    """Replaces each word by its lower-case stem, using the language's Snowball stemmer (Porter 2001)."""
    return _WORDS.sub(lambda found: _stem(found[0].lower(), language), text)


# Snowball's languages, and the codes by which their stop words are listed: those without a code have no list.
LANGUAGES = {
    "arabic": "ar",
    "armenian": "hy",
    "basque": "eu",
    "catalan": "ca",
    "czech": "cs",
    "danish": "da",
    "dutch": "nl",
    "english": "en",
    "esperanto": "eo",
    "estonian": "et",
    "finnish": "fi",
    "french": "fr",
    "german": "de",
    "greek": "el",
    "hindi": "hi",
    "hungarian": "hu",
    "indonesian": "id",
    "irish": "ga",
    "italian": "it",
    "lithuanian": "lt",
    "nepali": "",
    "norwegian": "no",
    "persian": "fa",
    "polish": "pl",
    "portuguese": "pt",
    "romanian": "ro",
    "russian": "ru",
    "serbian": "",
    "spanish": "es",
    "swedish": "sv",
    "tamil": "",
    "turkish": "tr",
    "yiddish": "",
}

STEPS: dict[str, Callable[[str], str]] = {
    "nfc": nfc,
    "nfkc": nfkc,
    "control_characters": control_characters,
    "whitespace": whitespace,
    "lowercase": lowercase,
    "numbers": numbers,
    "punctuation": punctuation,
    **{f"{name}_stop_words": functools.partial(stop_words, language=name) for name, code in LANGUAGES.items() if code},
    **{f"{name}_stemming": functools.partial(stemming, language=name) for name in LANGUAGES},
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
            listed = [each for each in known if each.partition("_")[0] not in LANGUAGES]
            stems_only = [language for language, code in LANGUAGES.items() if not code]
            raise UserError(
                f"config.data.cleaning has no step {name!r}: known steps are {', '.join(listed)}, and "
                f"LANGUAGE_stemming and LANGUAGE_stop_words for {', '.join(LANGUAGES)}, but no stop words for "
                f"{', '.join(stems_only)}"
            )


@functools.cache
def _stop_words(language: str) -> frozenset[str]:
    if language == "english":
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # takes a second, and only this step needs it

        return ENGLISH_STOP_WORDS
    try:
        import stopwordsiso
    except ImportError as error:
        raise UserError(
            f"config.data.cleaning: {language}_stop_words needs another package: pip install 'calibrated-lm[languages]'"
        ) from error
    return frozenset(stopwordsiso.stopwords(LANGUAGES[language]))


@functools.cache
def _stemmer(language: str):
    import snowballstemmer

    return snowballstemmer.stemmer(language)


@functools.lru_cache(maxsize=2**16)  # the library takes 0.1 ms for a stem, and most words repeat
def _stem(word: str, language: str) -> str:
    return _stemmer(language).stemWord(word)


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
