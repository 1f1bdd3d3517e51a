"""Names for what passes between rooms."""

from typing import Any, Protocol

import numpy as np
from jax import Array

# A tree of parameters, as Flax makes it.
Params = Any

# On a device or on the host: for functions that take either.
AnyArray = Array | np.ndarray

# Arrays by name: on devices, and this host's part of them before they get there.
Batch = dict[str, Array]
HostBatch = dict[str, np.ndarray]


class Batches(Protocol):
    """Batches of which each is a function of its number."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, step: int, /) -> HostBatch:
        """This host's part of one batch."""
        ...
