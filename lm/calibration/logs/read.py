"""Logs by the kind of their files."""

from collections.abc import Sequence
from pathlib import Path

from lm.calibration.logs.harness import read_harness_logs
from lm.calibration.logs.inspect import read_inspect_logs
from lm.calibration.logs.items import Log
from lm.errors import UserError

_HARNESS, _INSPECT = (".jsonl",), (".eval", ".json")


def read_logs(
    paths: Sequence[Path],
    normalization: str = "sum",
    confidence: str = "auto",
    scorer: str = "",
    stated: str = "confidence",
) -> Log:
    """Predictions from logs of lm-evaluation-harness (samples_*.jsonl) or of Inspect (.eval, .json).

    Args:
      paths: of files of one kind.
      normalization: of log-likelihoods, as for `read_harness_logs`.
      confidence: which one to read, as for `read_inspect_logs`.
      scorer: likewise.
      stated: likewise.

    Raises:
      UserError: if a file is missing or damaged, is of another kind, or lacks what predictions need; and for a setting
        that has no effect on this kind.
    """
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such log")
        if path.suffix not in (*_HARNESS, *_INSPECT):
            raise UserError(f"{path}: logs are samples_*.jsonl of lm-evaluation-harness, .eval or .json of Inspect")
    kinds = {path.suffix in _HARNESS for path in paths}
    if len(kinds) != 1:
        raise UserError("name one log, or several of the same tool")
    of_harness = kinds == {True}
    if of_harness and (confidence, scorer, stated) != ("auto", "", "confidence"):
        raise UserError("confidence, scorer and stated are for logs of Inspect: leave them out")
    if not of_harness and normalization != "sum":
        raise UserError(f"normalization={normalization} is for logs of lm-evaluation-harness: leave it out")
    try:
        if of_harness:
            return read_harness_logs(paths, normalization)
        return read_inspect_logs(paths, confidence, scorer, stated)
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # damage comes to light anywhere
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{', '.join(map(str, paths))}: damaged, or no log: {reason}") from error
