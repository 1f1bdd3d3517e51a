"""A setting of the C library that makes training on CPU about half again as fast."""

import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory for the next allocation instead of returning it to the system.

    XLA on CPU allocates a step's scratch memory anew each step. Returned and fetched again, every page of it is zeroed
    by the kernel each time: a third of the time of a small model's step. Kept, the process holds on to its peak.

    Returns:
      Whether it took effect; elsewhere than on Linux with glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # One arena, because large blocks of other threads' arenas are always returned.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))
    return all(mallopt(option, value) == 1 for option, value in settings)
