"""The ladder: which models are trained and measured, each an ordinary run of experiments.pretrain."""

import dataclasses
from typing import NamedTuple

from lm.errors import UserError
from lm.runs.config import PretrainConfig

# Layers, width and heads of a decoder with about so many parameters, embeddings not counted.
SIZES = {
    "0.1M": (2, 64, 1),
    "0.3M": (3, 96, 2),
    "1M": (5, 128, 2),
    "3M": (4, 256, 2),
    "10M": (6, 384, 6),
}
CORPORA = ("prose_characters", "prose_tokens", "code_characters", "code_tokens")


class Rung(NamedTuple):
    """A model to train: a corpus of the config, a size of `SIZES`, and a seed."""

    corpus: str
    size: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder, and in tables."""
        return f"{self.corpus}_{self.size}_seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class EntropyRateConfig:
    """The experiment.

    Attributes:
      prose_characters: the run that a rung on characters of prose is, apart from its size and seed.
      prose_tokens: likewise, on subword tokens.
      code_characters: likewise, on bytes or characters of code.
      code_tokens: likewise, on subword tokens of code.
      ladder: the rungs to train and to measure, each CORPUS:SIZE:SEED, such as "prose_characters:0.3M:0".
      models: work directories of other decoders to measure, trained by experiments.pretrain.
      prompt_tokens: tokens of held-out text before each generated text.
      new_tokens: tokens of each generated text. Prompt and text fit into the models' windows.
      documents: held-out windows to measure on; each is a prompt and its true continuation.
      fit_documents: other held-out windows, to fit the temperature and the look-ahead correction on: at most so many,
        at least half of that.
      look_ahead_documents: prompts that the corrected model continues, each step of which asks for the entropy after
        every token.
      look_ahead_every: distance of the positions at which the temperature and the look-ahead correction are fitted, and
        the latter judged.
      look_ahead_vocabulary: the largest vocabulary for which the correction is computed; it is exact.
      batch_size: windows at a time.
      seed: of the generated texts and the choice of windows.
    """

    prose_characters: PretrainConfig
    prose_tokens: PretrainConfig
    code_characters: PretrainConfig
    code_tokens: PretrainConfig
    ladder: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    prompt_tokens: int = 32
    new_tokens: int = 512
    documents: int = 96
    fit_documents: int = 96
    look_ahead_documents: int = 32
    look_ahead_every: int = 16
    look_ahead_vocabulary: int = 256
    batch_size: int = 48
    seed: int = 0

    def __post_init__(self):
        for entry in self.ladder:
            parse_rung(entry)

    @property
    def rungs(self) -> list[Rung]:
        """The ladder."""
        return [parse_rung(entry) for entry in self.ladder]


def parse_rung(entry: str) -> Rung:
    """The rung that an entry CORPUS:SIZE:SEED names.

    Raises:
      UserError: if it is malformed or unknown.
    """
    corpus, size, seed, *more = [*entry.split(":"), "", ""]
    is_known = corpus in CORPORA and size in SIZES and seed.isascii() and seed.isdigit() and len(more) == 2
    if not is_known:
        raise UserError(
            f"config.ladder: {entry!r} must be CORPUS:SIZE:SEED, with one of {', '.join(CORPORA)}, one of "
            f"{', '.join(SIZES)}, and a number"
        )
    return Rung(corpus, size, int(seed))


def run_config(config: EntropyRateConfig, rung: Rung) -> PretrainConfig:
    """The config of a rung's run."""
    base: PretrainConfig = getattr(config, rung.corpus)
    layers, width, heads = SIZES[rung.size]
    model = dataclasses.replace(base.model, layers=layers, width=width, heads=heads)
    return dataclasses.replace(base, seed=rung.seed, model=model)
