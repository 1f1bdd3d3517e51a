"""Compiled programs kept on disk, so that a second run of the same shapes does not compile again."""

import hashlib
import platform
from pathlib import Path

from lm.files import cache_directory

# When there is more, JAX deletes what was not used for longest.
MOST_BYTES = 2 * 2**30
# What compiles faster than this is not worth a file.
_LEAST_SECONDS = 0.2


def keep_compiled_programs() -> Path | None:
    """Turns on JAX's persistent compilation cache below the project's cache directory, unless the user chose another.

    JAX's own settings stay in force: `JAX_COMPILATION_CACHE_DIR` names another folder, and
    `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.

    Returns:
      The folder, or None where JAX's settings decide or nothing can be written.
    """
    import jax  # the command line answers mistakes without it

    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] or not settings["jax_enable_compilation_cache"]:
        return None
    folder = cache_directory() / "compiled" / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    return folder


def _machine() -> str:
    """The kind of processor: XLA writes code for just the instructions that it has, and its key does not name them."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    kind = hashlib.blake2b(f"{platform.processor()} {flags}".encode(), digest_size=6).hexdigest()
    return f"{platform.machine()}-{kind}"
