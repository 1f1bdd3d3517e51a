"""Compiled programs cached on disk, so that a second run with the same shapes does not compile again."""

import hashlib
import os
import platform
from pathlib import Path

from lm.files import cache_directory

# Beyond this size JAX deletes the least recently used programs.
MOST_BYTES = 2 * 2**30
# Programs that compile faster than this are not worth a file.
_LEAST_SECONDS = 0.2


def keep_compiled_programs() -> Path | None:
    """Turns on JAX's persistent compilation cache in the project's cache directory, unless the user chose another.

    JAX's own settings stay in force: `JAX_COMPILATION_CACHE_DIR` names another folder, and
    `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.

    Returns:
      The folder, or None if JAX's settings decide or the folder cannot be written.
    """
    import jax  # mistakes on the command line are reported without it

    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] or not settings["jax_enable_compilation_cache"]:
        return None
    folder = cache_directory() / "compiled" / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if _owner_has_a_name():
        jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    return folder


def _owner_has_a_name() -> bool:
    """Whether user and group have names; without them, as in `docker run -u 1234`, JAX cannot delete old programs."""
    try:
        import grp
        import pwd

        return bool(pwd.getpwuid(os.getuid()) and grp.getgrgid(os.getgid()))
    except (ImportError, KeyError):
        return False


def _machine() -> str:
    """The kind of processor: XLA compiles for its instruction set, which JAX's cache key does not include."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    kind = hashlib.blake2b(f"{platform.processor()} {flags}".encode(), digest_size=6).hexdigest()
    return f"{platform.machine()}-{kind}"
