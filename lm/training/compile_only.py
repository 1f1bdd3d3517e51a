"""Compiling for accelerators that are not here: topologies of TPU and NVIDIA GPUs, and what their compilers say."""

import contextlib
import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Sequence
from typing import Any, cast

import jax
from jax.experimental import topologies

from lm.errors import UserError
from lm.training.chips import Target
from lm.training.hlo import Program

# Which package compiles for a platform, and the extra that brings it.
_COMPILERS = {"tpu": ("libtpu", "plan-tpu"), "cuda": ("jax_plugins.xla_cuda13", "plan-cuda")}
# Another process may hold libtpu's lock file, there is no metadata server to ask, and what libtpu says about the lack
# of TPUs on this machine is of no interest.
_TPU_SETTINGS = {
    **{"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1", "TPU_MIN_LOG_LEVEL": "3"},
    **{"TPU_STDERR_LOG_LEVEL": "3", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"},
}
# Without a GPU kernels cannot be tried out, and Triton's products need that for some shapes.
_OPTIONS: dict[str, dict[str, str | bool]] = {
    "tpu": {},
    "cuda": {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": False},
}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "": 1}
# An H100 SXM as XLA describes it; memory sizes and bandwidth from the vendor's data sheet.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiler says of a step.

    Attributes:
      peak_bytes: memory that one chip needs.
      fits: whether it has that much.
      seconds: the compilation took.
      custom_calls: how often a step calls kernels that XLA did not write itself, by target; empty if it doesn't fit.
      sent: bytes that each chip sends in a step, or None if it doesn't fit.
    """

    peak_bytes: int
    fits: bool
    seconds: float
    custom_calls: dict[str, int]
    sent: float | None

    @property
    def fused_attention(self) -> int:
        """How often a step calls a kernel of attention."""
        names = ("fmha", "tpu_custom_call", "splash")
        return sum(count for target, count in self.custom_calls.items() if any(name in target for name in names))


def check_compiler(target: Target) -> None:
    """Checks that the compiler of a target is installed.

    Raises:
      UserError: if not, or if there is none.
    """
    if target.platform not in _COMPILERS:
        raise UserError(
            f"--compile: --target={target.name} is no accelerator: name tpu or cuda, or leave out --compile"
        )
    module, extra = _COMPILERS[target.platform]
    with contextlib.suppress(ModuleNotFoundError):
        if importlib.util.find_spec(module):
            return
    raise UserError(
        f"--compile: --target={target.name} needs the extra {extra}, which is not installed: pip install "
        f"'calibrated-lm[{extra}]'"
    )


def described_devices(target: Target) -> Sequence[jax.Device]:
    """Devices that only the compiler knows.

    Raises:
      UserError: if there is no such topology.
    """
    check_compiler(target)
    try:
        if target.topology is not None:
            os.environ.update({name: os.environ.get(name, value) for name, value in _TPU_SETTINGS.items()})
            return topologies.get_topology_desc(target.topology, "tpu").devices
        size = f"1x1x{target.devices}"
        return topologies.get_topology_desc("", "cuda", topology=size, target_config=_H100).devices
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--target={target.name}: {' '.join(str(error).split())}") from error


def compiled(lowered: jax.stages.Lowered, target: Target) -> Compiled:
    """Compiles a step that was lowered for the target's devices."""
    began = time.perf_counter()
    try:
        program = lowered.compile(_OPTIONS[target.platform])
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(needed_bytes(str(error)), False, time.perf_counter() - began, {}, None)
    seconds = time.perf_counter() - began
    # `temp_size_in_bytes` may be more than the chip has, although the program fits.
    peak = cast(Any, program.memory_analysis()).peak_memory_in_bytes  # both compilers know it
    read = Program(program.as_text() or "")
    sent = sum(each.sent for each in read.collectives())
    fits = target.chip is not None and peak <= target.chip.memory
    return Compiled(peak, fits, seconds, read.custom_calls(), sent)


def needed_bytes(message: str) -> int:
    """The memory that a program would need, from the compiler's message that it doesn't fit; 0 if it doesn't say."""
    match = re.search(r"(?:Used |\()([\d.]+)([KMG]?)\)? (?:of|exceeds available)", message)
    return round(float(match[1]) * _UNITS[match[2]]) if match else 0
