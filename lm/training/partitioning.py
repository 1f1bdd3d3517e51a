"""Placement of arrays: a mesh of devices and a short table of sharding rules, or plain replication under `pmap`.

Mesh axes: `data` splits the batch and copies the parameters; `fsdp` splits the batch and the parameters; `tensor`
splits the parameters inside each layer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.errors import UserError
from lm.models.sharding import tree_shardings
from lm.runs.config import PartitioningConfig
from lm.runs.state import TrainState
from lm.types import Batch, HostBatch


class Partitioner(Protocol):
    """Compiles steps and places arrays for one strategy."""

    @property
    def axis_name(self) -> str | None:
        """The axis of `pmap` over which to sum, or None under `jit`."""

    @property
    def batch_shards(self) -> int:
        """Over how many devices the rows of a batch are divided."""

    @property
    def mesh(self) -> Mesh | None:
        """Of the devices; None under `pmap`."""

    @property
    def part_of_batch(self) -> tuple[int, int]:
        """Which part of each batch this host provides, from 0, and the number of parts."""

    def compile_init(self, init: Callable[[Array], TrainState]) -> Callable[[Array], TrainState]:
        """Compiles a function that creates the state with its sharding."""

    def compile_train_step(self, step: Callable) -> Callable:
        """Compiles (state, batch) -> (state, sums); the state's buffers are reused."""

    def compile_evaluation_step(self, step: Callable) -> Callable:
        """Compiles (state, batch) -> sums."""

    def place_batch(self, batch: HostBatch) -> Batch:
        """Distributes this host's rows over its devices."""


def make_partitioner(config: PartitioningConfig) -> Partitioner:
    """The partitioner for all available devices.

    Raises:
      UserError: if the axes don't multiply to the number of devices.
    """
    if config.strategy == "pmap":
        mesh_shape(config, jax.device_count())
        return PmapPartitioner()
    return mesh_partitioner(config, jax.devices())


def mesh_partitioner(config: PartitioningConfig, devices: Sequence[jax.Device]) -> "MeshPartitioner":
    """The partitioner of strategy "jit" for these devices, of which some may exist only for the compiler.

    Raises:
      UserError: if the axes don't multiply to the number of devices.
    """
    shape = mesh_shape(config, len(devices))
    return MeshPartitioner(jax.make_mesh(shape, ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=devices))


def mesh_shape(config: PartitioningConfig, devices: int) -> tuple[int, int, int]:
    """How many devices are along the axes `data`, `fsdp` and `tensor`.

    Raises:
      UserError: if the axes don't multiply to the number of devices.
    """
    rest = config.fsdp * config.tensor
    data = devices // rest if config.data == -1 else config.data
    if data * rest != devices:
        raise UserError(
            f"config.partitioning: data={config.data} x fsdp={config.fsdp} x tensor={config.tensor} must equal the "
            f"{devices} devices available"
        )
    return data, config.fsdp, config.tensor


def mesh_of_all_hosts() -> Mesh | None:
    """A mesh that divides rows over the devices of all hosts; None for one process, whose first device is enough."""
    if jax.process_count() == 1:
        return None
    return jax.make_mesh((jax.device_count(), 1, 1), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)


def one_device_partitioner() -> "MeshPartitioner":
    """The partitioner for only this host's first device, for any number of rows: for a model loaded from its run."""
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=jax.local_devices()[:1])
    return MeshPartitioner(mesh)


class MeshPartitioner:
    """`jit` over a mesh: XLA's partitioner inserts the communication."""

    axis_name = None

    def __init__(self, mesh: Mesh):
        """Works with any mesh that has the axes `data`, `fsdp` and `tensor`."""
        self.mesh = mesh
        self.batch_shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self._batch_sharding = NamedSharding(mesh, P(("data", "fsdp")))
        self._replicated = NamedSharding(mesh, P())

    @property
    def part_of_batch(self) -> tuple[int, int]:
        """Which part of each batch this host provides, from 0, and the number of parts.

        Hosts that share each layer, because `tensor` reaches over them, provide the same rows.
        """
        rows_of: dict[int, set[int]] = {}
        places: Mapping[Any, tuple[slice, ...]] = self._batch_sharding.devices_indices_map((self.batch_shards,))
        for device, (rows, *_) in places.items():
            rows_of.setdefault(device.process_index, set()).add(rows.start or 0)
        parts = sorted({tuple(sorted(rows)) for rows in rows_of.values()})
        if sum(map(len, parts)) != self.batch_shards:
            raise UserError(
                f"config.partitioning: the hosts' parts of a batch overlap with {dict(self.mesh.shape)}: make "
                "config.partitioning.tensor divide the devices of a host, or a multiple of them"
            )
        return parts.index(tuple(sorted(rows_of[jax.process_index()]))), len(parts)

    def compile_init(self, init: Callable[[Array], TrainState]) -> Callable[[Array], TrainState]:
        """Compiles a function that creates the state with its sharding."""
        shardings = tree_shardings(jax.eval_shape(init, jax.random.key(0)), self.mesh)
        return jax.jit(init, out_shardings=shardings)

    def compile_train_step(self, step: Callable) -> Callable:
        """Compiles (state, batch) -> (state, sums); the state's buffers are reused."""

        def sharded_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
            state, sums = step(state, batch)
            # Without this XLA may choose another layout for the new state and recompile for it.
            return jax.lax.with_sharding_constraint(state, tree_shardings(state, self.mesh)), sums

        return jax.jit(sharded_step, donate_argnums=0, compiler_options=_compiler_options(self.mesh))

    def compile_evaluation_step(self, step: Callable) -> Callable:
        """Compiles (state, batch) -> sums."""
        return jax.jit(step, out_shardings=self._replicated)

    def place_batch(self, batch: HostBatch) -> Batch:
        """Distributes this host's rows over its devices."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._batch_sharding, x), batch)


def _compiler_options(mesh: Mesh) -> dict[str, int] | None:
    # LLVM prefers half of AVX-512's width, since the full width used to lower the clock rate.
    return {"xla_cpu_prefer_vector_width": 512} if mesh.devices.flat[0].platform == "cpu" else None


class PmapPartitioner:
    """`pmap`: every device holds all parameters and processes its rows of the batch."""

    axis_name = "data"
    mesh = None

    def __init__(self):
        """Uses all devices."""
        self.batch_shards = jax.device_count()
        self.part_of_batch = jax.process_index(), jax.process_count()

    def compile_init(self, init: Callable[[Array], TrainState]) -> Callable[[Array], TrainState]:
        """Compiles a function that creates the state, replicated on every device."""
        mesh = jax.make_mesh((jax.device_count(),), (self.axis_name,), (AxisType.Auto,))
        return jax.jit(init, out_shardings=NamedSharding(mesh, P()))

    def compile_train_step(self, step: Callable) -> Callable:
        """Compiles (state, batch) -> (state, sums); the state's buffers are reused."""
        return jax.pmap(step, self.axis_name, in_axes=(None, 0), out_axes=(None, None), donate_argnums=0)

    def compile_evaluation_step(self, step: Callable) -> Callable:
        """Compiles (state, batch) -> sums."""
        return jax.pmap(step, self.axis_name, in_axes=(None, 0), out_axes=None)

    def place_batch(self, batch: HostBatch) -> Batch:
        """Adds the leading axis of devices that `pmap` maps over."""
        devices = jax.local_device_count()
        return jax.tree.map(lambda x: x.reshape(devices, x.shape[0] // devices, *x.shape[1:]), batch)
