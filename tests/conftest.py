"""Every test runs on eight virtual CPU devices, and implicit rank promotion is an error."""

import os
import sys
import tempfile
from pathlib import Path

# Nearly all the time of the tests is compiling; the fast code that full optimization makes would not earn it back.
_flags = " --xla_force_host_platform_device_count=8"
_flags += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
_flags += " --xla_cpu_use_fusion_emitters=false"  # slower to compile than what they replace
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + _flags
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests.tiny, experiments and configs

# Many tests train the same tiny model in a new object; compiling it once is most of what they cost. The processes that
# tests run in, and those that tests start, share what they compile.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="jax-cache-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
