"""Errors that experiments report in one line: the user's mistakes, and training that failed."""


class UserError(Exception):
    """A mistake in what the user gave: a config value, a file, a directory.

    The message is one line that names the field or the file and says what to do. Experiments print it without a
    traceback and exit with status 2.
    """


class TrainingError(Exception):
    """Training cannot continue, as when the loss is not finite. Experiments print it and exit with status 1."""
