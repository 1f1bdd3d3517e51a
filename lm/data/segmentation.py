"""Words of text that is written without spaces between them.

jieba (an extra: `pip install 'calibrated-lm[chinese]'`) knows Chinese words by their frequencies.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lm.errors import UserError
from lm.files import cache_directory
from lm.writing_systems import is_spaceless

SEGMENTERS = ("", "jieba")

Segmenter = Callable[[str], list[str]]


@functools.cache
def segmenter(name: str) -> Segmenter:
    """The function from a text to its words, which joined are the text again.

    Args:
      name: of `SEGMENTERS`, not empty.

    Raises:
      UserError: if its package is not installed.
    """
    try:
        import jieba  # builds its dictionary in a second, when it is first used
    except ImportError as error:
        raise UserError(f"segmentation={name} needs another package: pip install 'calibrated-lm[chinese]'") from error
    jieba.setLogLevel(logging.CRITICAL)  # what it cannot cache, it computes
    own = jieba.Tokenizer()  # so that words that someone adds elsewhere change nothing here
    # By default it trusts a file that any user of the machine may have written.
    own.tmp_dir = str(cache_directory())
    cache_directory().mkdir(parents=True, exist_ok=True)
    return own.lcut


def split_spaceless(text: str, segment: Segmenter) -> list[str]:
    """The words of a text without white space; text of other systems stays whole."""
    return segment(text) if any(map(is_spaceless, text)) else [text]


def word_starts(pieces: Sequence[bytes], segment: Segmenter) -> np.ndarray:
    """Whether a word begins with each piece, such as a token, or inside the previous one, [T].

    Args:
      pieces: UTF-8 that may be cut anywhere; empty for what is not text.
      segment: finds the words.
    """
    text = b"".join(pieces).decode("utf-8", "surrogateescape")  # so that each byte of half a character is one
    sizes = [1 if "\udc80" <= character <= "\udcff" else len(character.encode()) for character in text]
    byte_starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    words = segment(text)
    starts = byte_starts[np.concatenate([[0], np.cumsum([len(word) for word in words])]).astype(np.int64)]
    begins = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])[:-1]
    return np.isin(begins, starts)


def count_words(words: Iterable[str], limit: int) -> list[tuple[str, float]]:
    """The most frequent words with the logarithms of their frequencies, for a unigram model of text without spaces.

    Characters without spaces that occur are among them, up to a quarter, so that words beyond the limit are spelled.

    Args:
      words: of all texts, with repetitions.
      limit: how many.
    """
    counts = Counter(words)
    characters: Counter[str] = Counter()
    for word, count in counts.items():
        characters.update({character: count for character in word if is_spaceless(character)})
    kept = dict.fromkeys(_most_frequent(characters, limit // 4))
    for word in _most_frequent(counts, limit):
        if len(kept) == limit:
            break
        kept[word] = None
    total = np.log(max(counts.total(), 1))
    scores = {word: float(np.log(max(counts[word], 0.5)) - total) for word in kept}
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


def _most_frequent(counts: Counter[str], limit: int) -> list[str]:
    return sorted(counts, key=lambda word: (-counts[word], word))[:limit]
