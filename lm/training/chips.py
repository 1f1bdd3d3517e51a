"""Chips that a run may be planned for, with the figures of their vendors, and how many of them.

Peaks of 16-bit matrix products are those of `lm.models.accounting.PEAK_FLOPS`.
"""

import dataclasses
import math
import re

from lm.errors import UserError
from lm.models.accounting import PEAK_FLOPS


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, as its vendor describes it.

    Attributes:
      device_kind: JAX's name for it.
      memory: bytes that a program can have.
      memory_bandwidth: bytes per second from and to memory.
      network_bandwidth: bytes per second that it sends to its neighbours, over all links in one direction.
      topology_axes: of a TPU: axes of its network.
      most: chips that this network joins.
    """

    device_kind: str
    memory: float
    memory_bandwidth: float
    network_bandwidth: float
    topology_axes: int | None
    most: int

    @property
    def peak_flops(self) -> float:
        """Dense 16-bit operations per second."""
        return PEAK_FLOPS[self.device_kind]


# TPU: docs.cloud.google.com/tpu/docs, the page of each version; "interchip interconnect bandwidth" in Gbit/s is divided
# by 8. The memory is what libtpu 0.0.42 lets a program have. NVIDIA: the data sheet of each GPU; NVLink's bandwidth is
# stated for both directions and halved here.
CHIPS: dict[str, dict[str, Chip]] = {
    "tpu": {
        "v5e": Chip("TPU v5 lite", 15.75 * 2**30, 0.82e12, 200e9, 2, 256),
        "v5p": Chip("TPU v5", 95.74 * 2**30, 2.765e12, 600e9, 3, 6144),
        "v6e": Chip("TPU v6 lite", 31.25 * 2**30, 1.6e12, 400e9, 2, 256),
    },
    "cuda": {
        "a100": Chip("NVIDIA A100-SXM4-80GB", 80e9, 2.039e12, 300e9, None, 8),
        "h100": Chip("NVIDIA H100 80GB HBM3", 79.1 * 2**30, 3.35e12, 450e9, None, 8),
        "h200": Chip("NVIDIA H200", 141e9, 4.8e12, 450e9, None, 8),
    },
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to plan for.

    Attributes:
      name: as written on the command line.
      platform: "cpu", "tpu" or "cuda".
      devices: how many.
      chip: None for "cpu", which has no peak to compare with.
      topology: of a TPU slice, such as "v5p:4x4x4".
    """

    name: str
    platform: str
    devices: int
    chip: Chip | None = None
    topology: str | None = None


def parse_target(text: str) -> Target:
    """The devices that `cpu:64`, `tpu:v5p:4x4x4` or `cuda:h100:8` names.

    Raises:
      UserError: if it names none.
    """
    platform, _, rest = text.partition(":")
    if platform == "cpu":
        return Target(text, platform, _devices(rest, text))
    if platform not in CHIPS:
        raise UserError(f"--target={text} must begin with cpu, tpu or cuda: cpu:64, tpu:v5p:4x4x4 or cuda:h100:8")
    name, _, size = rest.partition(":")
    if name not in CHIPS[platform]:
        known = ", ".join(CHIPS[platform])
        raise UserError(f"--target={text}: there is no chip {name!r} among the known {platform} chips, {known}")
    chip = CHIPS[platform][name]
    devices = _devices(size, text) if chip.topology_axes is None else _topology(size, chip.topology_axes, text)
    if devices > chip.most:
        raise UserError(
            f"--target={text}: at most {chip.most} chips of this kind share one network, and slower networks between "
            "such groups cannot be planned"
        )
    return Target(text, platform, devices, chip, None if chip.topology_axes is None else f"{name}:{size}")


def _devices(size: str, text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,4}", size):
        raise UserError(f"--target={text} must end with a number of devices, such as {text.partition(':')[0]}:8")
    return int(size)


def _topology(size: str, axes: int, text: str) -> int:
    example = "x".join("4" * axes)
    if not re.fullmatch("x".join([r"[1-9]\d{0,2}"] * axes), size):
        raise UserError(f"--target={text} must end with a topology of {axes} axes, such as {example}")
    return math.prod(map(int, size.split("x")))
