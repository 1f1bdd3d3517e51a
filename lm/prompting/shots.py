"""The rows with answers that come first in a prompt, drawn from training rows."""

from collections.abc import Sequence

import numpy as np

from lm.errors import UserError
from lm.prompting.config import PromptConfig
from lm.tasks.supervised import Row


def choose_shots(rows: Sequence[Row], classes: Sequence[str], config: PromptConfig, seed: int) -> list[Row]:
    """The shots in their order.

    Args:
      rows: training rows with a `label`, one of the classes.
      classes: names; empty: rows have options of their own.
      config: how many and how.
      seed: for drawing them.

    Raises:
      UserError: if there are too few rows.
    """
    if config.shots > len(rows):
        raise UserError(f"config.prompt.shots={config.shots}, but there are {len(rows)} training rows: use fewer")
    drawn = _drawn(rows, classes, config, seed)[: config.shots]
    if config.order == "by_class" and classes:
        return sorted(drawn, key=lambda row: classes.index(row["label"]))
    if config.order == "random":
        return [drawn[place] for place in np.random.default_rng(config.order_seed).permutation(len(drawn))]
    return drawn


def _drawn(rows: Sequence[Row], classes: Sequence[str], config: PromptConfig, seed: int) -> list[Row]:
    """All rows in the order in which they are drawn, so that fewer are a subset of more."""
    shuffled = [rows[place] for place in np.random.default_rng(seed).permutation(len(rows))]
    if not (config.balanced and classes):
        return shuffled
    # Which class comes first in every turn is drawn too: a single shot is not always of the first class.
    rank = np.random.default_rng([seed, 1]).permutation(len(classes))
    turns = [0] * len(classes)
    keys = []
    for row in shuffled:
        number = classes.index(row["label"])
        keys.append((turns[number], rank[number]))
        turns[number] += 1
    return [shuffled[place] for place in sorted(range(len(keys)), key=keys.__getitem__)]
