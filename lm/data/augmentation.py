"""Self-training on generated text: what a model wrote, lightly corrupted, as training text for the next round.

The corruption keeps each round from merely sharpening what the model already says (noise in self-training: He et al.
2020, Revisiting Self-Training for Neural Sequence Generation; the three edits: Wei & Zou 2019, EDA).
"""

import dataclasses

import numpy as np

from lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """How much of a text is changed.

    Attributes:
      replace_rate: probability that a token is replaced by one drawn from the same text.
      insert_rate: probability that a token drawn from the same text is inserted after a token.
      delete_rate: probability that a token is dropped.
    """

    replace_rate: float = 0.02
    insert_rate: float = 0.02
    delete_rate: float = 0.02

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) < 1:
                raise UserError(f"config.augmentation.{field.name} must be in [0, 1), got {getattr(self, field.name)}")


def augment(tokens: np.ndarray, config: AugmentationConfig, rng: np.random.Generator) -> np.ndarray:
    """Replaces some tokens of a text, then drops some, then inserts some.

    New tokens are drawn from the text itself, so they follow its frequencies. A text that would lose all its tokens
    keeps the first.

    Args:
      tokens: ids, [n].
      config: the rates.
      rng: randomness.
    """
    if not tokens.size:
        return tokens
    changed = np.where(rng.random(tokens.size) < config.replace_rate, rng.choice(tokens, tokens.size), tokens)
    kept = rng.random(tokens.size) >= config.delete_rate
    kept[0] |= not kept.any()
    changed = changed[kept]
    places = np.flatnonzero(rng.random(changed.size) < config.insert_rate)
    return np.insert(changed, places + 1, rng.choice(tokens, places.size))
