"""Errors that experiments report in one line: the user's mistakes, and training that failed."""

import contextlib
import os
from collections.abc import Iterator


class UserError(Exception):
    """A mistake in what the user gave: a config value, a file, a directory.

    The message is one line that names the field or the file and says what to do. Experiments print it without a
    traceback and exit with status 2.
    """


class TrainingError(Exception):
    """Training cannot continue, as when the loss is not finite. Experiments print it and exit with status 1."""


@contextlib.contextmanager
def naming(place: str | os.PathLike) -> Iterator[None]:
    """Adds the name of a file or directory to user errors raised inside that do not have it yet."""
    try:
        yield
    except UserError as error:
        if os.fspath(place) in str(error):
            raise
        raise UserError(f"{os.fspath(place)}: {error}") from error
