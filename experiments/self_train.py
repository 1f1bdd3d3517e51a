"""Trains a model on text that it generated itself, mixed with real text, and measures whether that helps.

python -m experiments.self_train --config=configs/self_training.py --config.init_from=runs/quickstart \\
    --workdir=runs/self_training

In each round the newest model generates text, some of its tokens are replaced, inserted and deleted, and the model is
trained further on a mixture of generated and real text. A control is trained for equally long on real text alone.
`effect.json` and the table at the end compare the two on the same validation windows, with a paired interval. The same
command resumes it after an interruption.
"""

import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
from absl import flags
from rich.table import Table

from experiments.pretrain import pretrain
from lm.command_line import define_config_file, run
from lm.configuration import check_seed, differences
from lm.console import Console
from lm.data.augmentation import AugmentationConfig, augment
from lm.data.corpora import open_corpus
from lm.data.windows import mixed_rows
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
from lm.files import read_json, write_atomically, write_json
from lm.hosts import define_distributed, meet
from lm.inference.language_models import LanguageModel
from lm.inference.load import load
from lm.runs.config import FREE_TO_CHANGE, OptimizerConfig, PretrainConfig, TrainingConfig
from lm.runs.data_record import check_own
from lm.runs.sources import naming_source
from lm.runs.state import TrainState
from lm.runs.trained_run import TrainedRun, load_run
from lm.runs.work_directory import WorkDirectory
from lm.statistics.comparisons import Difference, paired_difference
from lm.training.evaluation import loss_by_window
from lm.training.loop import check_batch_size
from lm.training.partitioning import make_partitioner, one_device_partitioner

_AT_A_TIME = 64  # texts
_CONFIG = "self_training.json"


@dataclasses.dataclass(frozen=True)
class SelfTrainConfig:
    """Rounds of self-training.

    Attributes:
      init_from: work directory of a pretrained decoder.
      rounds: how often the model generates text and learns from it.
      texts: number of texts generated in each round.
      share: of each batch's windows that come from generated text.
      augmentation: how generated text is changed.
      sampling: how text is generated; `max_new_tokens` is the length of a text.
      optimizer: of each round.
      training: of each round, with `training.steps` steps.
      seed: for generation, changes and the order of the data.
      trust: read the text that the config of `init_from` names although someone else may have trained that run.
    """

    init_from: str = ""
    rounds: int = 2
    texts: int = 256
    share: float = 0.25
    augmentation: AugmentationConfig = AugmentationConfig()
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=127, temperature=1.0, top_p=0.95)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-4, warmup_steps=10)
    training: TrainingConfig = TrainingConfig(steps=100)
    seed: int = 0
    trust: bool = False

    def __post_init__(self):
        check_seed("config.seed", self.seed)
        if self.rounds < 1 or self.texts < 1:
            raise UserError("config.rounds and config.texts must be at least 1")
        if not 0 < self.share < 1:
            raise UserError(f"config.share must be between 0 and 1, got {self.share}")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config_file(values, SelfTrainConfig)
    flags.DEFINE_string("workdir", None, "Directory of the rounds.", flag_values=values)
    define_distributed(values)


def main(values: flags.FlagValues) -> int:
    """Trains; returns the exit status."""
    config = values.config
    if not values.workdir:
        raise UserError("--workdir is missing: name a directory, such as --workdir=runs/self_training")
    if not config.init_from:
        raise UserError("config.init_from is missing: name the work directory of a pretrained decoder")
    console = Console(stderr=True, quiet=jax.process_index() != 0)
    return self_train(config, Path(values.workdir).expanduser(), console)


def self_train(config: SelfTrainConfig, workdir: Path, console: Console) -> int:
    """Trains both arms, round by round; returns the exit status.

    Raises:
      UserError: if the source run is not a decoder, and as in `pretrain`.
    """
    first = load_first(config)
    check(config, first, workdir)
    is_first = jax.process_index() == 0
    if is_first:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / _CONFIG, dataclasses.asdict(config))
    losses: dict[str, list[dict[str, float]]] = {"self-training": [], "control": []}
    newest = {arm: Path(config.init_from) for arm in losses}
    for number in range(1, config.rounds + 1):
        own_text = workdir / f"round_{number}" / "generated.jsonl"
        if is_first and not own_text.exists():
            with console.status(f"round {number}: generating {config.texts:,} texts"):
                write_texts(load(newest["self-training"], "last"), config, number, own_text)
        meet()  # the text is there
        for arm, earlier in newest.items():
            directory = WorkDirectory(workdir / f"round_{number}" / arm)
            outcome = pretrain(round_config(first.config, config, number, arm, earlier, own_text), directory, console)
            if outcome.stopped_by:
                return 128 + outcome.stopped_by
            losses[arm].append(outcome.validation)
            newest[arm] = directory.path
    if is_first:
        with console.status("comparing the last round's models"):
            report(losses, last_difference(newest), workdir, console)
    return 0


def load_first(config: SelfTrainConfig) -> TrainedRun:
    """The source run, with a round's training settings.

    Raises:
      UserError: if there is none, or it is not a decoder.
    """
    with naming_source(config.init_from):
        found = load_run(WorkDirectory(Path(config.init_from)), "last")
    if not isinstance(found.config, PretrainConfig) or found.config.objective.name != "causal":
        raise UserError(f"config.init_from={config.init_from} is not a decoder pretrained to continue texts")
    if found.config.imported_from:
        raise UserError(
            f"config.init_from={config.init_from} holds a published model, which has no real text to compare with: "
            "train it further on a text with experiments.pretrain, and start from that run"
        )
    return dataclasses.replace(found, config=dataclasses.replace(found.config, training=config.training))


def check(config: SelfTrainConfig, first: TrainedRun, workdir: Path) -> None:
    """Checks that the rounds can be trained here, before writing anything.

    Raises:
      UserError: if not, because of the directory, the devices or the real text.
    """
    WorkDirectory(workdir).check(first.config)
    if first.config.data.mixed_source is not None:
        raise UserError(
            f"config.init_from={config.init_from} was trained on a mixture, with config.data.mixed_source="
            f"{first.config.data.mixed_source}, where generated text would have to be: use a run without"
        )
    if not config.trust and jax.process_index() == 0:
        source = WorkDirectory(Path(config.init_from))
        named = source.load_config()
        check_own(source, named, ("source", "validation_source", "mixed_source"), "add --config.trust=True")
    check_same(config, workdir)
    partitioner = make_partitioner(first.config.partitioning)
    check_batch_size(first.config, partitioner)
    mixed_rows(config.share, config.training.batch_size // partitioner.part_of_batch[1], "config.share")
    open_corpus(first.config.data, first.config.tokenizer, first.tokenizer)


def check_same(config: SelfTrainConfig, workdir: Path) -> None:
    """Checks that rounds in this directory have this config; their number may grow.

    Raises:
      UserError: if they have another.
    """
    path = workdir / _CONFIG
    if not path.exists():
        return
    changed = differences(read_json(path), config)
    changed = {
        name: pair for name, pair in changed.items() if not name.startswith(("rounds", "trust", *FREE_TO_CHANGE))
    }
    if changed:
        listed = "; ".join(f"config.{name} was {old!r}, is {new!r}" for name, (old, new) in changed.items())
        raise UserError(f"{workdir} holds rounds with another config ({listed}): use another --workdir")


def round_config(
    base: PretrainConfig, config: SelfTrainConfig, number: int, arm: str, earlier: Path, own_text: Path
) -> PretrainConfig:
    """The pretraining run of one arm in one round."""
    mixed = {"mixed_source": f"jsonl:{own_text}", "mixed_share": config.share} if arm == "self-training" else {}
    return dataclasses.replace(
        base,
        seed=config.seed + number,
        init_from=str(earlier),
        init_checkpoint="last",
        data=dataclasses.replace(base.data, **mixed),
        optimizer=config.optimizer,
        training=config.training,
        predictions=dataclasses.replace(base.predictions, tokens=0),
    )


def write_texts(model: LanguageModel, config: SelfTrainConfig, number: int, path: Path) -> None:
    """Generates texts, changes them, and stores them as JSON Lines, atomically."""
    tokenizer, lines = model.tokenizer, []
    start = ["\n" if tokenizer.end_of_text is None else ""]
    for batch in range(-(-config.texts // _AT_A_TIME)):
        sampling = dataclasses.replace(config.sampling, samples=1, seed=hash_seed(config.seed, number, batch))
        prompts = start * min(_AT_A_TIME, config.texts - len(lines))
        for written in model.generate(prompts, sampling):
            rng = np.random.default_rng((config.seed, number, len(lines)))
            changed = augment(written.tokens, config.augmentation, rng)
            lines.append(json.dumps({"text": tokenizer.decode(changed.tolist())}))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n".join(lines) + "\n")


def hash_seed(*numbers: int) -> int:
    """One seed derived from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)


def last_difference(newest: dict[str, Path]) -> Difference:
    """The validation loss of the self-trained model minus that of its control, paired by windows of text."""
    figures = {}
    for arm, path in newest.items():
        trained, partitioner = load_run(WorkDirectory(path), "last"), one_device_partitioner()
        corpus = open_corpus(trained.config.data, trained.config.tokenizer, trained.tokenizer)
        training = trained.config.training
        batches = trained.task.validation_batches(corpus, training.evaluation_batch_size or training.batch_size)
        figures[arm] = loss_by_window(trained.task, TrainState.of_params(trained.params), batches, partitioner)
    return paired_difference(figures["control"], figures["self-training"])


def report(losses: dict[str, list[dict[str, float]]], change: Difference, workdir: Path, console: Console) -> None:
    """Writes and prints the validation loss of both arms after each round, and the ECE."""
    table = Table(title="validation loss after each round")
    for column in ("round", "arm", "loss", "standard error", "ECE %"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for number in range(len(losses["control"])):
        for arm, rounds in losses.items():
            found = rounds[number]
            table.add_row(
                str(number + 1),
                arm,
                f"{found['validation/loss']:.4f}",
                f"{found['validation/loss_stderr']:.4f}",
                f"{100 * found['validation/ece']:.2f}",
            )
    console.print(table)
    sure = (
        "one validation window: no interval"
        if math.isnan(change.p)
        else f"95% interval {change.low:+.4f} to {change.high:+.4f}, p = {change.p:.3f}; paired by window"
    )
    console.print(
        f"self-training minus its control, after the last round: {change.value:+.4f} nats per token ({sure})",
    )
    effect = {"rounds": losses, "change": dataclasses.asdict(change)}
    write_json(workdir / "effect.json", effect)


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
