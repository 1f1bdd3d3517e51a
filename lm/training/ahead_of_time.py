"""A training step for devices that need not be here: lowered, partitioned or compiled from shapes alone."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

# Only the partitioner's result is wanted: the rest of the compilation is made as short as it can be.
_QUICKLY: dict[str, str | bool] = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}


def partitioned_hlo(lowered: jax.stages.Lowered) -> str:
    """The program of one device as XLA's partitioner makes it, before the passes of a backend change it.

    On CPU those passes turn bfloat16 into float32, also where it is communicated; other backends don't.

    Args:
      lowered: for a mesh of CPU devices, which may be virtual.
    """
    with tempfile.TemporaryDirectory() as folder, _without_cache():
        lowered.compile(_QUICKLY | {"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd-partitioning"})
        (path,) = Path(folder).glob("*after_spmd-partitioning*.txt")
        return path.read_text(encoding="utf-8")


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """A context without JAX's cache of compiled programs, which would leave out the partitioner."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # it remembers whether it is enabled
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()
