"""Names for what passes between rooms."""

from typing import Any

import numpy as np
from jax import Array

# A tree of parameters, as Flax makes it.
Params = Any

# Arrays by name: on devices, and this host's part of them before they get there.
Batch = dict[str, Array]
HostBatch = dict[str, np.ndarray]
