"""Which implementation of attention a call uses.

One rule: the fused kernel of the device, cuDNN's on NVIDIA GPUs and splash attention on TPUs, wherever it can do what
the call asks for. Elsewhere "xla", except "explicit" on CPU (where it is fastest), with a cache, and for what "xla"
cannot do: caps of scores and dropout of attention probabilities. `config.model.attention` may name a kernel, which is
then used by the same rule on the devices that have it; "explicit" and "xla" are always what they say.
"""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from lm.modules.config import ModelConfig

# The fused kernel of each platform, as `platform_of` names it.
KERNELS = {"cuda": "cudnn", "tpu": "splash"}
_OWNERS = {"cudnn": "cuDNN's attention needs an NVIDIA GPU, Ampere or newer", "splash": "splash attention needs a TPU"}
# Splash attention works on blocks of this many queries and keys, or multiples of it.
SPLASH_BLOCK = 128
_CUDNN_HEAD_WIDTH = 128


@dataclasses.dataclass(frozen=True)
class Target:
    """What attention is computed on.

    Attributes:
      platform: "cpu", "tpu", "cuda" (a GPU for which cuDNN has fused attention) or "gpu" (any other).
      batch_shards: over how many devices the rows of a batch are divided.
      head_shards: over how many devices heads are divided.
    """

    platform: str
    batch_shards: int = 1
    head_shards: int = 1

    @classmethod
    def of(cls, mesh: Mesh | None) -> "Target":
        """The devices of a mesh, which need not be of this machine; None: the first device of this one."""
        if mesh is None:
            return cls(platform_of(jax.devices()[0]))
        return cls(platform_of(mesh.devices.flat[0]), mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["tensor"])


def platform_of(device: Any) -> str:
    """The platform of a device in the words of `Target`."""
    if device.platform not in ("gpu", "cuda"):
        return device.platform
    # AMD's capabilities are names. Devices of a topology that is only compiled for may not state theirs.
    major = str(getattr(device, "compute_capability", "8.0")).split(".")[0]
    return "cuda" if major.isdigit() and int(major) >= 8 else "gpu"


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """What a call of attention asks for, as far as kernels differ in it.

    Attributes:
      queries: their number in a row, T.
      keys: their number in a row, S.
      rows: of the batch, B; None: a number that the devices divide.
      cached: whether the keys come from a cache.
      segmented: whether queries see only their segment.
      masked: whether there is another mask, which neither segments nor a window express.
      biased: whether something is added to the scores.
      drops: whether probabilities are dropped.
    """

    queries: int
    keys: int
    rows: int | None = None
    cached: bool = False
    segmented: bool = False
    masked: bool = False
    biased: bool = False
    drops: bool = False


@dataclasses.dataclass(frozen=True)
class Choice:
    """An implementation of attention, and why it is not the kernel; "": it is, or there is none."""

    implementation: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.implementation} ({self.reason})" if self.reason else self.implementation


def choose_attention(config: ModelConfig, target: Target, call: AttentionCall) -> Choice:
    """The implementation for a call, by the rule of this module."""
    if config.attention in ("explicit", "xla"):
        return Choice(config.attention)
    kernel = KERNELS.get(target.platform) if config.attention == "auto" else config.attention
    reason = ""
    if kernel is not None:
        reason = _OWNERS[kernel]
        if KERNELS.get(target.platform) == kernel:
            refusal = _cudnn_refusal if kernel == "cudnn" else _splash_refusal
            reason = refusal(config, target, call)
        if not reason:
            return Choice(kernel)
    beyond_xla = config.attention_softcap is not None or call.drops
    explicit = target.platform == "cpu" or call.cached or beyond_xla
    return Choice("explicit" if explicit else "xla", reason)


def _cudnn_refusal(config: ModelConfig, target: Target, call: AttentionCall) -> str:
    """Why cuDNN cannot do it; "": it can."""
    has_bias = call.biased or call.segmented or call.masked or config.attention_window is not None
    reasons = {
        "cuDNN's attention takes 16-bit numbers, and config.model.dtype is float32": config.dtype == "float32",
        "cuDNN's attention is not used with a cache": call.cached,
        "cuDNN's attention cannot cap scores": config.attention_softcap is not None,
        "cuDNN's attention drops nothing here, and config.model.attention_dropout is not 0": call.drops,
        f"cuDNN's attention takes heads up to {_CUDNN_HEAD_WIDTH} wide, in steps of 8": (
            config.size_per_head > _CUDNN_HEAD_WIDTH or config.size_per_head % 8 != 0
        ),
        "cuDNN's attention takes masks and biases of even lengths only": (
            has_bias and (call.queries % 2 != 0 or call.keys % 2 != 0)
        ),
        **_uneven_heads(config, target),
    }
    return _first(reasons)


def _splash_refusal(config: ModelConfig, target: Target, call: AttentionCall) -> str:
    """Why splash attention cannot do it; "": it can."""
    reasons = {
        "splash attention is not used with a cache": call.cached,
        "splash attention takes no relative positions": call.biased,
        "splash attention takes no mask but segments and windows": call.masked,
        "splash attention drops nothing, and config.model.attention_dropout is not 0": call.drops,
        f"splash attention takes lengths in steps of {SPLASH_BLOCK}": (
            call.queries % SPLASH_BLOCK != 0 or call.keys % SPLASH_BLOCK != 0
        ),
        f"{target.batch_shards} devices do not divide the rows": (
            call.rows is not None and call.rows % target.batch_shards != 0
        ),
        **_uneven_heads(config, target),
    }
    return _first(reasons)


def _uneven_heads(config: ModelConfig, target: Target) -> dict[str, bool]:
    shards = target.head_shards
    uneven = config.heads % shards != 0 or config.num_kv_heads % shards != 0
    return {f"config.partitioning.tensor={shards} does not divide the heads": uneven}


def _first(reasons: dict[str, bool]) -> str:
    return next((reason for reason, holds in reasons.items() if holds), "")


def resolve_attention(config: ModelConfig, platform: str) -> ModelConfig:
    """The config with the implementation in place of "auto" that training at full length uses on a platform.

    A model on a mesh needs no such help: it asks the mesh's devices, also if this machine lacks them.

    Args:
      config: of a Transformer.
      platform: as in `Target`.
    """
    if config.attention != "auto":
        return config
    choice = choose_attention(config, Target(platform), _training_calls(config)["self-attention"])
    return dataclasses.replace(config, attention=choice.implementation)


def describe_attention(config: ModelConfig, mesh: Mesh | None = None, masked: bool = False) -> str:
    """What training at full length uses, in a line such as "attention: cudnn".

    Args:
      config: of a Transformer.
      mesh: of devices, or None for one.
      masked: whether the objective masks more than segments (prefix LM).
    """
    target = Target.of(mesh)
    calls = _training_calls(config, masked)
    choices = {name: str(choose_attention(config, target, call)) for name, call in calls.items()}
    if len(set(choices.values())) == 1:
        choices = {"attention": choices["self-attention"]}
    return "; ".join(f"{name}: {choice}" for name, choice in choices.items())


def _training_calls(config: ModelConfig, masked: bool = False) -> dict[str, AttentionCall]:
    length, drops = config.size_of_sequence, config.attention_dropout > 0
    cross = AttentionCall(length, length, segmented=True, drops=drops)
    calls = {"self-attention": dataclasses.replace(cross, masked=masked, biased=config.positions == "relative")}
    return calls | {"cross-attention": cross} if config.architecture == "encoder_decoder" else calls
