"""Strings at which a text ends."""

from collections.abc import Sequence


def before_stop(text: str, stop: Sequence[str]) -> tuple[str, str] | None:
    """The text before the first stop string, and that string; of several at one place, the longest. None: it has none.

    >>> before_stop("one. two! three", ["!", ". "])
    ('one', '. ')
    """
    places = [(text.find(each), -len(each), each) for each in stop if each in text]
    if not places:
        return None
    place, _, found = min(places)
    return text[:place], found


def certain_length(text: str, stop: Sequence[str]) -> int:
    """The number of characters from the beginning that stay, whatever text follows.

    Not certain are the end that may become a stop string, and bytes that are not yet a whole character (U+FFFD).

    >>> certain_length("one. tw", ["two"])
    5
    """
    whole = text.rstrip("\ufffd")
    longest = max(map(len, stop), default=0)
    starts = range(max(0, len(whole) - longest + 1), len(whole))
    return next((start for start in starts if any(each.startswith(whole[start:]) for each in stop)), len(whole))
