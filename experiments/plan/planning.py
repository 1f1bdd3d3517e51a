"""The plan of one config on one target: what each device holds, computes and sends in a step."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax

from lm.errors import UserError
from lm.modules.attention_choice import KERNELS, resolve_attention
from lm.runs.config import PretrainConfig
from lm.training.ahead_of_time import AbstractStep, abstract_step, bytes_per_device, partitioned_hlo
from lm.training.chips import Target
from lm.training.compile_only import Compiled, compiled, described_devices
from lm.training.hlo import Collective, Program
from lm.training.partitioning import mesh_shape
from lm.training.roofline import Roofline, roofline


@dataclasses.dataclass(frozen=True)
class Plan:
    """A step of a config on a target. Bytes and operations are those of one device.

    Attributes:
      config_name: of the config.
      target: the devices.
      mesh: devices along `data`, `fsdp` and `tensor`.
      settings: config keys that a search changed.
      config: the run.
      parameter_bytes: the parameters, and their moving average if there is one.
      optimizer_bytes: the optimizer's state.
      batch_bytes: the batch.
      held_bytes: an estimate of gradients and activations, from `lm.training.hlo.Program.held`.
      dot_flops: operations of matrix products in a step.
      model_flops: those that the model needs, for all devices together.
      collectives: communication of a step.
      unknown_loops: names of loops that count as one trip.
      roofline: bounds on its time; None where there is no chip.
      compiled: what the compiler says, if it was asked.
      seconds: that planning took, without compilation.
    """

    config_name: str
    target: Target
    mesh: tuple[int, int, int]
    settings: Mapping[str, Any]
    config: PretrainConfig
    parameter_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    held_bytes: int
    dot_flops: int
    model_flops: int
    collectives: tuple[Collective, ...]
    unknown_loops: tuple[str, ...]
    roofline: Roofline | None
    compiled: Compiled | None
    seconds: float

    @property
    def sent(self) -> float:
        """Bytes that each device sends in a step."""
        return sum(each.sent for each in self.collectives)

    @property
    def needed_bytes(self) -> int:
        """Memory that each device needs: the compiler's figure, or else the estimate."""
        if self.compiled is not None:
            return self.compiled.peak_bytes
        return self.parameter_bytes + self.optimizer_bytes + self.batch_bytes + self.held_bytes

    @property
    def fits(self) -> bool | None:
        """Whether each device has that memory; None where there is no chip."""
        if self.compiled is not None:
            return self.compiled.fits
        return None if self.target.chip is None else self.needed_bytes <= self.target.chip.memory


def prepare_devices(count: int) -> None:
    """Makes the CPU act as this many devices; to be called before JAX looks for devices.

    Raises:
      UserError: if JAX has found fewer already.
    """
    try:
        jax.config.update("jax_platforms", "cpu")  # planning takes no accelerator from a run
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # it has looked
        if jax.device_count("cpu") < count:
            raise UserError(
                f"this process has {jax.device_count('cpu')} devices, and {count} are to be planned"
            ) from None


def make_plan(name: str, config: PretrainConfig, target: Target, settings: Mapping[str, Any] | None = None) -> Plan:
    """Plans a config on a target from its partitioned program, without a compiler for the target.

    Args:
      name: of the config.
      config: of the run.
      target: the devices.
      settings: what a search changed in the config, to be shown.

    Raises:
      UserError: if the config doesn't fit the target.
    """
    began = time.perf_counter()
    # Where a CPU lacks the kernel of attention, the same products without it partition alike.
    step = abstract_step(config, jax.devices("cpu")[: target.devices])
    attention = resolve_attention(config.model, target.platform).attention
    program = Program(partitioned_hlo(step.lowered))
    dots, collectives = program.dots(), program.collectives()
    state_bytes = bytes_per_device(step.state)
    bounds = (
        None
        if target.chip is None
        else roofline(
            target.chip,
            target.devices,
            dots,
            collectives,
            model_flops=step.model_flops,
            state_bytes=state_bytes,
            fused_attention=attention == KERNELS.get(target.platform),
        )
    )
    return Plan(
        config_name=name,
        target=target,
        mesh=mesh_shape(config.partitioning, target.devices),
        settings=dict(settings or {}),
        config=config,
        **_state_bytes(step),
        batch_bytes=bytes_per_device(step.batch),
        held_bytes=program.held(),
        dot_flops=sum(dot.flops for dot in dots),
        model_flops=step.model_flops,
        collectives=tuple(collectives),
        unknown_loops=tuple(sorted(program.unknown_loops)),
        roofline=bounds,
        compiled=None,
        seconds=time.perf_counter() - began,
    )


def with_compiler(plan: Plan) -> Plan:
    """The plan with what the target's compiler says.

    Raises:
      UserError: if it is not installed or doesn't know the topology.
    """
    devices = described_devices(plan.target)
    try:
        step = abstract_step(plan.config, devices)
    except RuntimeError as error:
        if "cuDNN" not in str(error):
            raise
        raise UserError(
            "--compile: config.model.attention=cudnn needs cuDNN, which the extra plan-cuda brings: install it, or set "
            "config.model.attention=xla"
        ) from error
    return dataclasses.replace(plan, compiled=compiled(step.lowered, plan.target))


def _state_bytes(step: AbstractStep) -> dict[str, int]:
    state = step.state
    parameters = bytes_per_device([state.params, state.averaged_params])
    return {"parameter_bytes": parameters, "optimizer_bytes": bytes_per_device(state.optimizer_state)}
