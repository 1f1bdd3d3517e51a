"""Settings of the C library: faster training on CPU, and reading a checkpoint in little more memory than its size."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory for the next allocation instead of returning it to the system.

    XLA on CPU allocates a step's scratch memory anew each step. Returned and fetched again, every page of it is zeroed
    by the kernel each time: a third of the time of a small model's step. Kept, the process holds on to its peak.

    Returns:
      Whether it took effect; elsewhere than on Linux with glibc nothing happens.
    """
    # One arena, because large blocks of other threads' arenas are always returned.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))
    return all(_mallopt(option, value) for option, value in settings)


@contextlib.contextmanager
def return_freed_memory() -> Iterator[None]:
    """Inside, glibc gives freed blocks of 1 MiB and more back to the system at once.

    A checkpoint is read by many threads through buffers as large as its arrays. What they free would stay in the heaps
    of these threads, up to as much as the parameters again.
    """
    _mallopt(_M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        _mallopt(_M_MMAP_THRESHOLD, 2**25)  # what glibc's own rule ends with after large blocks were freed


def _mallopt(option: int, value: int) -> bool:
    """Whether the setting took effect; elsewhere than on Linux with glibc nothing happens."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return ctypes.CDLL("libc.so.6").mallopt(option, value) == 1
    except (OSError, AttributeError):
        return False
