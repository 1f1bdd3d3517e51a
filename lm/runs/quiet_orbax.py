"""Silences Orbax, which reports every file and every thread: one line of ours says what a damaged file means."""

import logging
import sys
from types import TracebackType

for _noisy in ("absl", "asyncio", "orbax"):
    logging.getLogger(_noisy).setLevel(logging.CRITICAL)

_report_unraisable, _report = sys.unraisablehook, sys.excepthook


def _report_unless_orbax(unraisable: "sys.UnraisableHookArgs") -> None:
    """When one array of many is damaged, the coroutines that read the others end with errors that nobody awaits."""
    code = getattr(unraisable.object, "cr_code", None)
    if code is None or "orbax" not in code.co_filename:
        _report_unraisable(unraisable)


def _report_unless_late(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """And TensorStore's threads call back to the event loop that has ended."""
    if str(error) != "Event loop is closed":
        _report(kind, error, trace)


sys.unraisablehook, sys.excepthook = _report_unless_orbax, _report_unless_late
