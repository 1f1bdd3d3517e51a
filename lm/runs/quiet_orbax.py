"""Silences Orbax, which reports every file and every thread: one line of ours says what a damaged file means."""

import logging
import sys

for _noisy in ("absl", "asyncio", "orbax"):
    logging.getLogger(_noisy).setLevel(logging.CRITICAL)

_report = sys.unraisablehook


def _report_unless_orbax(unraisable: "sys.UnraisableHookArgs") -> None:
    """When one array is damaged, those that read the others end with errors that nobody awaits.

    They are coroutines of Orbax, and threads of TensorStore that call back to an event loop that has ended.
    """
    code = getattr(unraisable.object, "cr_code", None)
    is_coroutine = code is not None and "orbax" in code.co_filename
    if not is_coroutine and str(unraisable.exc_value) != "Event loop is closed":
        _report(unraisable)


sys.unraisablehook = _report_unless_orbax
