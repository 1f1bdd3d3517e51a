"""Types that several packages share."""

from typing import Any, Protocol

import numpy as np
from jax import Array

# A tree of parameters, as Flax creates it.
Params = Any

# On a device or on the host: for functions that take either.
AnyArray = Array | np.ndarray

# Arrays by name: on devices, and this host's part of them before they get there.
Batch = dict[str, Array]
HostBatch = dict[str, np.ndarray]


class Batches(Protocol):
    """A sequence of batches, each a function of its index."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, step: int, /) -> HostBatch:
        """This host's part of one batch."""
        ...
