"""Settings of the C library: faster training on CPU, and reading a checkpoint in little more memory than its size."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for the next allocation instead of returning it to the system.

    XLA on CPU allocates scratch memory in every step. If it is returned in between, the kernel zeroes every page again,
    which takes a third of a small model's step. If it is kept, the process stays at its peak memory.

    Returns:
      Whether it took effect; it does only on Linux with glibc.
    """
    # One arena, because large blocks in other arenas are always returned.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))
    return all(_mallopt(option, value) for option, value in settings)


@contextlib.contextmanager
def return_freed_memory() -> Iterator[None]:
    """A context in which glibc returns freed blocks of 1 MiB and more to the system immediately.

    Many threads read a checkpoint through buffers as large as its arrays. Freed buffers would stay in the heaps of
    these threads, up to the size of the parameters.
    """
    _mallopt(_M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        _mallopt(_M_MMAP_THRESHOLD, 2**25)  # where glibc's dynamic threshold ends after large blocks were freed


def _mallopt(option: int, value: int) -> bool:
    """Whether the setting took effect; it does only on Linux with glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return ctypes.CDLL("libc.so.6").mallopt(option, value) == 1
    except (OSError, AttributeError):
        return False
