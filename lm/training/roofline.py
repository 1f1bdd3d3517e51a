"""How fast a step could be: the time that each part of a chip needs at its stated peak.

These are bounds, not forecasts: no chip reaches its peaks. They show which part would limit a run, and what cannot be
fast.
"""

import dataclasses
from collections.abc import Sequence

from lm.training.chips import Chip
from lm.training.hlo import Collective, Dot

ASSUMPTIONS = (
    "Compute: the operations of matrix products as partitioned, recomputed ones and those that a causal mask hides "
    "included, at the peak for 16 bits.",
    "Memory: operands and results of matrix products, and the state read and written once. What elementwise "
    "operations move is left out; so are the scores of fused attention.",
    "Network: what each chip sends by ring algorithms, over all its links at once; an all-reduce of which a slice is "
    "used is a reduce-scatter. Latency is left out.",
    "Overlapped: the largest of the three. Serial: the larger of compute and memory, and then the network.",
    "MFU: model FLOPs, without recomputation, of the peak in that time.",
)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Bounds on one step.

    Attributes:
      compute: seconds for the matrix products.
      memory: seconds to move their operands and results.
      network: seconds to send what each chip sends.
      ideal: seconds for the model's operations alone at the peak.
    """

    compute: float
    memory: float
    network: float
    ideal: float

    @property
    def overlapped(self) -> float:
        """Seconds of a step whose parts hide behind the slowest one."""
        return max(self.compute, self.memory, self.network)

    @property
    def serial(self) -> float:
        """Seconds of a step that waits for all communication."""
        return max(self.compute, self.memory) + self.network

    @property
    def mfu(self) -> tuple[float, float]:
        """Model FLOPs utilization, overlapped and serial."""
        return self.ideal / self.overlapped, self.ideal / self.serial

    @property
    def limit(self) -> str:
        """The slowest part: "compute", "memory" or "network"."""
        parts = {"compute": self.compute, "memory": self.memory, "network": self.network}
        return max(parts, key=lambda name: parts[name])


def roofline(
    chip: Chip,
    devices: int,
    dots: Sequence[Dot],
    collectives: Sequence[Collective],
    *,
    model_flops: float,
    state_bytes: float,
    fused_attention: bool,
) -> Roofline:
    """The bounds of a step.

    Args:
      chip: on which it runs.
      devices: how many of them.
      dots: of one device, as are `collectives` and `state_bytes`.
      collectives: of the step.
      model_flops: of the whole step on all devices, without recomputation.
      state_bytes: of parameters and optimizer.
      fused_attention: whether the products of attention keep their results, the scores, on the chip.
    """
    moved = 2 * state_bytes + sum(dot.bytes for dot in dots if not (fused_attention and dot.batched))
    return Roofline(
        compute=sum(dot.flops for dot in dots) / chip.peak_flops,
        memory=moved / chip.memory_bandwidth,
        network=sum(each.sent for each in collectives) / chip.network_bandwidth,
        ideal=model_flops / (devices * chip.peak_flops),
    )
