"""Trains a model on a task with examples, from the parameters of another run or from random ones.

python -m experiments.finetune --config=configs/sst2.py --config.init_from=runs/bert --workdir=runs/sst2

The same command resumes a run that was stopped. When training ends the best checkpoint is evaluated on the validation
and the test rows: predictions/SPLIT.jsonl to read, SPLIT.metrics.json, and SPLIT.npz for experiments.calibrate.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import flags
from jax.sharding import Mesh

from experiments.evaluate import EvaluateConfig, evaluate, show
from experiments.pretrain import parse_profile
from lm.command_line import define_config_file, overridden, run
from lm.console import Console
from lm.data.config import ExamplesConfig, check_overridden_sources
from lm.data.example_batches import TrainExampleBatches
from lm.data.rows import Splits, read_examples
from lm.data.tokenizers import Tokenizer, train_tokenizer
from lm.data.word_vectors import first_words
from lm.errors import UserError
from lm.files import check_writable
from lm.hosts import check_same, define_distributed
from lm.modules.attention_choice import describe_attention
from lm.modules.config import TRANSFORMERS
from lm.runs.config import FinetuneConfig
from lm.runs.data_record import check_data, readable, write_data_record
from lm.runs.host_memory import keep_freed_memory
from lm.runs.sources import load_source, naming_source, print_shape, with_model_of_source
from lm.runs.trained_run import TrainedRun
from lm.runs.work_directory import WorkDirectory, with_vocabulary
from lm.tasks.registry import classes_of, columns_of, make_supervised_task, texts_of
from lm.tasks.supervised import Row, SupervisedTask
from lm.tasks.text_encoding import special_tokens
from lm.training.finetuning import finetuning_problem, make_train_batches, row_fingerprints, with_steps
from lm.training.initial_parameters import params_of_source, params_with_word_vectors
from lm.training.loop import Outcome, Trainer, check_batch_size
from lm.training.partitioning import make_partitioner
from lm.training.summary import next_command, stopped, summary
from lm.types import Params


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config_file(values, FinetuneConfig)
    flags.DEFINE_string(
        "workdir", None, "Directory of the run: created if missing, resumed if not.", flag_values=values
    )
    flags.DEFINE_string(
        "profile", None, "FIRST:LAST steps to record for TensorBoard's profiler, such as 20:25.", flag_values=values
    )
    define_distributed(values)


def main(values: flags.FlagValues) -> int:
    """Trains and evaluates; returns the exit status."""
    if not values.workdir:
        raise UserError("--workdir is missing: name a directory for the run, such as --workdir=runs/sst2")
    config = values.config
    check_overridden_sources(config.data, overridden(values))
    directory, console = WorkDirectory(Path(values.workdir)), Console(stderr=True, quiet=jax.process_index() != 0)
    outcome = finetune(config, directory, console, then_evaluate=True, profile=parse_profile(values.profile))
    if outcome.stopped_by:
        return 128 + outcome.stopped_by
    console.print(next_command(directory), soft_wrap=True)
    return 0


def finetune(
    config: FinetuneConfig,
    directory: WorkDirectory,
    console: Console,
    *,
    then_evaluate: bool = False,
    on_evaluation: Callable[[int, dict[str, float]], None] | None = None,
    compared_with: WorkDirectory | None = None,
    profile: range | None = None,
) -> Outcome:
    """Trains a model in a work directory, from its newest checkpoint if it has one.

    Args:
      config: of the run.
      directory: of the run.
      console: for progress.
      then_evaluate: whether to evaluate the best checkpoint on the validation and the test rows at the end.
      on_evaluation: is called with the step and the metrics of each evaluation, and may raise to end the run.
      compared_with: another run that this one must share its data with.
      profile: steps to record for TensorBoard's profiler.

    Raises:
      UserError: if the config, the data or the directory is invalid; nothing is written then.
      TrainingError: if a loss is not finite.
    """
    config, own_model = with_model_of_source(config), config.model
    directory.check(config)
    check_writable(directory.predictions, f"--workdir={directory.path}")
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    partitioner = make_partitioner(config.partitioning)
    check_batch_size(config, partitioner)
    splits = read_examples(config.data, *columns_of(config.task))
    check_rows(config, splits)
    source = load_source(config)
    tokenizer = choose_tokenizer(config, source, directory, splits)
    full_config = with_vocabulary(config, tokenizer)
    classes = classes_of(config.task, splits.train)
    data = row_fingerprints(splits)
    check_same(readable(data) | {"the tokenizer": tokenizer.digest}, "give all hosts the same files")
    notes = check_data(directory, data, classes, compared_with)
    with naming_source(config.init_from):  # its architecture may not suit the task, or be too short for the rows
        task = make_supervised_task(config.task, full_config.model, tokenizer, classes, splits.train, partitioner.mesh)
        train, validation, _ = (task.encode(rows) for rows in splits)
    batches = make_train_batches(full_config, task, train, partitioner.part_of_batch)
    full_config = with_steps(full_config, batches.steps_per_epoch)
    params = initial_params(full_config, task, source, tokenizer, splits.train, console)
    problem = finetuning_problem(full_config, task, batches, splits, validation, partitioner, params)
    trainer = Trainer(
        full_config, problem, partitioner, directory, console, on_evaluation=on_evaluation, profile=profile
    )
    if config.init_from:
        print_shape(config, own_model, console)
    introduce(full_config, task, splits, batches, (train.cut, validation.cut), partitioner.mesh, console)
    for note in notes:
        console.print(note)
    for name, encoded in (("training", train), ("validation", validation)):
        for note in encoded.notes:
            console.print(f"(!) {name}: {note}")
    if note := unknown_note(tokenizer, texts_of(config.task, splits.validation)):
        console.print(f"(!) validation: {note}")

    def claim() -> None:
        directory.claim(config, tokenizer, classes)
        write_data_record(directory, config, data)

    outcome = trainer.train(claim)
    if outcome.stopped_by:
        console.print(stopped(outcome))
    elif then_evaluate:
        if jax.process_index() == 0:
            console.print(summary(directory, outcome, problem.describe))
        for split in ("validation", "test") if config.data.test else ("validation",):
            # Results go to standard output.
            found = evaluate(EvaluateConfig(split=split), directory, splits=splits, console=console)
            if found is not None:
                show(found, Console(quiet=console.quiet))
    return outcome


def unknown_note(tokenizer: Tokenizer, texts: Sequence[str]) -> str:
    """A line if most of the texts is unknown to the tokenizer, as without spaces between words, else ""."""
    unknown = tokenizer.mostly_unknown(texts)
    return unknown and (
        f"{unknown}, so the model cannot tell these texts apart: for text without spaces between words, or in few "
        "rows, set config.tokenizer.kind=bpe or unigram"
    )


def choose_tokenizer(
    config: FinetuneConfig, source: TrainedRun | None, directory: WorkDirectory, splits: Splits
) -> Tokenizer:
    """The tokenizer of the source run, else that of the work directory, else a new one trained on the training rows.

    Raises:
      UserError: if a given vocabulary differs from that of the source run.
    """
    kept = Tokenizer.load(directory.tokenizer) if directory.tokenizer.exists() else None
    if source is None:
        if kept is not None:
            return kept
        texts = texts_of(config.task, splits.train)
        if config.word_vectors and config.tokenizer.kind == "words":
            texts = [*texts, *first_words(config.word_vectors, config.word_vectors_kept)]
        made = train_tokenizer(config.tokenizer, lambda split: texts)
        return made.with_special_tokens(special_tokens(config.model.architecture))
    given = Tokenizer.load(config.tokenizer.path) if config.tokenizer.kind == "file" else None
    for name, other in ((f"config.tokenizer.path={config.tokenizer.path}", given), (str(directory.tokenizer), kept)):
        if other is not None and other.digest != source.tokenizer.digest:
            raise UserError(
                f"{name} is another vocabulary ({other.vocab_size:,} tokens) than that of config.init_from="
                f"{config.init_from} ({source.tokenizer.vocab_size:,}), whose parameters need the latter: leave it out"
            )
    return source.tokenizer


def check_rows(config: FinetuneConfig, splits: Splits) -> None:
    """Checks that there are validation rows, and that no second text is ignored.

    Raises:
      UserError: if not.
    """
    if not splits.validation:
        raise UserError(
            "there are no validation rows: set config.data.validation, or config.data.validation_fraction above 0"
        )
    place = next((row["place"] for row in splits.train if "pair" in row), None)
    if place is not None and not config.task.pair:
        raise UserError(
            f"{place} has a second text, in the column {config.data.column_names.get('pair', 'pair')!r}, which "
            "config.task.pair=False ignores: set config.task.pair=True"
        )


def initial_params(
    config: FinetuneConfig,
    task: SupervisedTask,
    source: TrainedRun | None,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    console: Console,
) -> Params | None:
    """The initial parameters, or None for random ones; prints where they come from.

    Raises:
      UserError: if parameters or word vectors don't fit the model.
    """
    if source is not None and not config.random_weights:
        return params_of_source(config, task, source, console)
    if config.word_vectors:
        return params_with_word_vectors(config, task, tokenizer, texts_of(config.task, rows), console)
    return None


def introduce(
    config: FinetuneConfig,
    task: SupervisedTask,
    splits: Splits,
    batches: TrainExampleBatches,
    cut: tuple[int, int],
    mesh: Mesh | None,
    console: Console,
) -> None:
    """Prints in a few lines what is about to be trained."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    devices = jax.devices()
    lines = [
        f"{parameters:,} parameters on {len(devices)} x {devices[0].device_kind}",
        *sources_of(config.data, splits),
        f"{config.training.steps:,} steps, {batches.steps_per_epoch:,} per epoch; {batches.padding_share:.0%} of the "
        "tokens are padding",
    ]
    if config.model.architecture in TRANSFORMERS:
        lines.insert(1, describe_attention(config.model, mesh))
    if splits.test_rows_in_train:
        lines.append(f"{splits.test_rows_in_train:,} test rows are also in the training rows")
    if any(cut):
        longest = config.model.size_of_sequence
        lines.append(f"truncated to {longest} tokens: {cut[0]:,} rows for training, {cut[1]:,} for validation")
    console.print("\n".join(lines))


def _rows(rows: Sequence[Row]) -> str:
    return f"{len(rows):,} row{'' if len(rows) == 1 else 's'}"


def sources_of(config: ExamplesConfig, splits: Splits) -> list[str]:
    """A line for each split: how many rows it has, and where they come from."""
    lines = [f"training: {_rows(splits.train)} of {config.train}"]
    validation = f"of {config.validation}" if config.validation else f"held out of {config.train}"
    lines.append(f"validation: {_rows(splits.validation)} {validation}")
    if config.test:
        lines.append(f"test: {_rows(splits.test)} of {config.test}")
    return lines


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
