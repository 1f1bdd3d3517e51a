"""Several texts mixed by weight: each row of a batch comes from one of them.

`mixture:0.7=shards:/data/web,0.3=shards:/data/code` names the weights and the sources. Which text a row comes from, and
how many rows that text has given before, is computed from the row's number alone, so that a batch stays a function of
(seed, step) for any number of hosts. After n rows a text has given its share of n to within one row for each text.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from fractions import Fraction

import grain
import numpy as np

from lm.data.store import TrainingText
from lm.errors import UserError
from lm.types import HostBatch

SCHEME = "mixture:"
_ROWS = 2**55  # of an endless order; grain's length of a mixture must fit a machine word
_BEGINNING = 10_000_000  # tokens


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Training texts with weights.

    Attributes:
      parts: the texts.
      weights: of the rows; they need not add up to one. Their ratios are rounded to hundredths of the smallest.
    """

    parts: tuple[TrainingText, ...]
    weights: tuple[Fraction, ...]

    @property
    def num_tokens(self) -> int:
        """Of all texts."""
        return sum(part.num_tokens for part in self.parts)

    @property
    def num_documents(self) -> int:
        """Of all texts."""
        return sum(part.num_documents for part in self.parts)

    @property
    def beginning(self) -> np.ndarray:
        """The first tokens of each text, in proportion to the weights where the texts are long enough."""
        total = sum(self.weights)
        pairs = zip(self.parts, self.weights, strict=True)
        return np.concatenate([part.beginning[: int(_BEGINNING * weight / total)] for part, weight in pairs])

    def content_digest(self) -> str:
        """Hash of the texts and their weights."""
        pairs = zip(self.parts, self.weights, strict=True)
        parts = " ".join(f"{weight}={part.content_digest()}" for part, weight in pairs)
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()

    def rows(self, parts: Sequence[Callable[[np.ndarray], HostBatch]]) -> Callable[[np.ndarray], HostBatch]:
        """The mixture's rows by number, from those of its texts."""
        numbers = [
            grain.MapDataset.range(_ROWS).map(lambda row, which=which: (which, row)) for which in range(len(parts))
        ]
        order = grain.MapDataset.mix(numbers, weights=self.weights)

        def mixed(rows_b: np.ndarray) -> HostBatch:
            which_b, own_b = np.array([order[row] for row in rows_b.tolist()], np.int64).T
            batch: HostBatch = {}
            for which in np.unique(which_b).tolist():
                inside_b = which_b == which
                for name, values in parts[which](own_b[inside_b]).items():
                    batch.setdefault(name, np.zeros((len(rows_b), *values.shape[1:]), values.dtype))[inside_b] = values
            return batch

        return mixed


def parse_mixture(source: str) -> tuple[tuple[str, ...], tuple[Fraction, ...]]:
    """The sources and the weights that `mixture:WEIGHT=SOURCE,WEIGHT=SOURCE...` names.

    Raises:
      UserError: if it has another form, or a weight is not positive.
    """
    sources, weights = [], []
    for part in source.removeprefix(SCHEME).split(","):
        weight, equals, spec = part.partition("=")
        try:
            number = Fraction(weight)
        except (ValueError, ZeroDivisionError):
            number = Fraction(0)
        if not equals or not spec or number <= 0 or spec.startswith(SCHEME):
            raise UserError(
                f"config.data.source={source}: {part!r} must be WEIGHT=SOURCE with a positive weight, such as "
                "0.3=shards:/data/code"
            )
        sources.append(spec)
        weights.append(number)
    return tuple(sources), tuple(weights)
