"""Every test runs on eight virtual CPU devices, and implicit rank promotion is an error."""

import os
import sys
import tempfile
from pathlib import Path

# Nearly all the time of the tests is compiling; the fast code that full optimization makes would not earn it back.
_flags = " --xla_force_host_platform_device_count=8"
_flags += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + _flags
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests.tiny, experiments and configs

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Many tests train the same tiny model in a new object; compiling it once is most of what they cost.
_cache = tempfile.TemporaryDirectory(prefix="jax-cache-")
jax.config.update("jax_compilation_cache_dir", _cache.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
