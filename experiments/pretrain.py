"""Pretrains a language model: decoder, encoder or encoder-decoder, on text without labels.

python -m experiments.pretrain --config=configs/quickstart.py --workdir=runs/quickstart

The same command resumes a run that was stopped. Every config key can be changed: --config.training.steps=500.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import flags
from jax.sharding import Mesh

from lm.command_line import define_config_file, overridden, run
from lm.console import Console, printable
from lm.data.config import check_overridden_sources
from lm.data.corpora import open_corpus
from lm.data.store import Corpus
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.files import check_writable
from lm.hosts import check_same, define_distributed
from lm.inference.load import in_use
from lm.inference.predictions import check_predictable, write_predictions
from lm.inference.samples import check_samples, write_samples
from lm.models.accounting import parameter_count
from lm.modules.attention_choice import describe_attention
from lm.objectives.objective import PretrainingTask, TextProperties
from lm.objectives.registry import make_task, special_tokens
from lm.runs.config import PretrainConfig
from lm.runs.data_record import check_data, readable, write_data_record
from lm.runs.host_memory import keep_freed_memory
from lm.runs.sources import load_source, print_shape, with_model_of_source
from lm.runs.tensorboard import add_products
from lm.runs.trained_run import TrainedRun, load_run
from lm.runs.work_directory import WorkDirectory, with_vocabulary
from lm.training.evaluation import describe
from lm.training.initial_parameters import params_of_source
from lm.training.loop import Outcome, Trainer, check_batch_size
from lm.training.partitioning import make_partitioner
from lm.training.pretraining import mixed_corpus, pretraining_problem, text_fingerprints
from lm.training.summary import next_command, stopped, summary


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config_file(values, PretrainConfig)
    flags.DEFINE_string(
        "workdir", None, "Directory of the run: created if missing, resumed if not.", flag_values=values
    )
    flags.DEFINE_string(
        "profile", None, "FIRST:LAST steps to record for TensorBoard's profiler, such as 20:25.", flag_values=values
    )
    define_distributed(values)


def main(values: flags.FlagValues) -> int:
    """Trains; returns the exit status."""
    if not values.workdir:
        raise UserError("--workdir is missing: name a directory for the run, such as --workdir=runs/quickstart")
    config = values.config
    check_overridden_sources(config.data, overridden(values))
    console = Console(stderr=True, quiet=jax.process_index() != 0)
    outcome = pretrain(config, WorkDirectory(Path(values.workdir)), console, parse_profile(values.profile))
    return 128 + outcome.stopped_by if outcome.stopped_by else 0


def pretrain(
    config: PretrainConfig,
    directory: WorkDirectory,
    console: Console,
    profile: range | None = None,
    on_evaluation: Callable[[int, dict[str, float]], None] | None = None,
    compared_with: WorkDirectory | None = None,
) -> Outcome:
    """Trains a model in a work directory, from its newest checkpoint if it has one.

    Args:
      config: of the run.
      directory: of the run.
      console: for progress.
      profile: steps to record for TensorBoard's profiler.
      on_evaluation: is called with the step and the metrics of each evaluation, and may raise to end the run.
      compared_with: another run that this one must share its data with.

    Raises:
      UserError: if the config, the data or the directory is invalid; nothing is written then.
      TrainingError: if a loss is not finite.
    """
    config, own_model = with_model_of_source(config), config.model
    directory.check(config)
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    partitioner = make_partitioner(config.partitioning)
    check_batch_size(config, partitioner)
    source = load_source(config)
    if source is not None:
        kept = source.tokenizer
    elif directory.tokenizer.exists():
        kept = Tokenizer.load(directory.tokenizer, config.tokenizer.end_of_text)
    else:
        kept = None
    needed = special_tokens(config.objective)
    if kept is not None:
        check_room(config, kept, needed)
    corpus = open_corpus(config.data, config.tokenizer, kept, needed)
    full_config = with_vocabulary(config, corpus.tokenizer)
    text = TextProperties.of(corpus, full_config.model.vocab_size)
    task = make_task(config.objective, full_config.model, corpus.tokenizer, partitioner.mesh, text)
    notes = check_products(full_config, task, corpus, directory)
    mixed = mixed_corpus(config, corpus.tokenizer)
    data = text_fingerprints(corpus, mixed)
    check_same(readable(data), "give all hosts the same text")
    notes += check_data(directory, data, compared_with=compared_with)
    params = None if source is None else params_of_source(config, task, source, console)
    problem = pretraining_problem(full_config, task, corpus, partitioner, params, mixed)
    trainer = Trainer(
        full_config, problem, partitioner, directory, console, on_evaluation=on_evaluation, profile=profile
    )
    if config.init_from:
        print_shape(config, own_model, console)
    console.print("\n".join([*notes, introduction(full_config, corpus, partitioner.mesh)]))

    def claim() -> None:
        directory.claim(config, corpus.tokenizer)
        write_data_record(directory, config, data)

    outcome = trainer.train(claim)
    if outcome.stopped_by:
        console.print(stopped(outcome))
    elif jax.process_index() == 0:
        results = Console(quiet=console.quiet)
        results.print(summary(directory, outcome, describe))
        write_products(full_config, corpus, directory, console, results)
        console.print(next_command(directory), soft_wrap=True)
    return outcome


def check_room(config: PretrainConfig, tokenizer: Tokenizer, needed: Sequence[str]) -> None:
    """Checks that a model with a vocabulary of its own has rows for the special tokens that the objective adds.

    Raises:
      UserError: if not.
    """
    missing = [name for name in needed if tokenizer.special_id(name) is None]
    rows = config.model.vocab_size
    if config.init_from and missing and rows is not None and rows < tokenizer.vocab_size + len(missing):
        raise UserError(
            f"config.objective.name={config.objective.name} needs the special tokens {', '.join(missing[:5])}"
            f"{', ...' if missing[5:] else ''}, for which the vocabulary of config.init_from={config.init_from} has no "
            "room: choose another objective or model"
        )


def check_products(
    config: PretrainConfig, task: PretrainingTask, corpus: Corpus, directory: WorkDirectory
) -> list[str]:
    """Checks, before training, what will be written after it; returns lines to print.

    Raises:
      UserError: if the model cannot make it, or it cannot be written.
    """
    wanted = config.predictions.tokens
    if wanted and not task.counts_bytes:
        raise UserError(
            f"config.predictions.tokens needs config.objective.name=causal, not {config.objective.name}: set it to 0"
        )
    if config.model.architecture != "decoder":
        return []
    model = in_use(TrainedRun(config, corpus.tokenizer, (), task, None, 0))
    check_samples(model, config.samples)
    if directory.samples.is_dir():
        raise UserError(f"{directory.samples} is a directory, and the samples are written there: remove it")
    if not wanted:
        return []
    check_writable(directory.predictions, "config.predictions")
    found = check_predictable(corpus.validation, config.predictions, config.seed, config.model.size_of_sequence)
    few = f"config.predictions.tokens={wanted:,}, but the validation text has {found:,}: all are predicted"
    return [few] if found < wanted else []


def write_products(
    config: PretrainConfig, corpus: Corpus, directory: WorkDirectory, console: Console, results: Console
) -> None:
    """Writes samples and predictions of the best checkpoint, if the model can continue texts."""
    if config.model.architecture != "decoder":
        return
    # The mesh is for training; a few samples are made on one device.
    model = in_use(load_run(directory))
    written = write_samples(model, config.samples, directory.samples)
    if not results.quiet:
        print(printable(written), file=results.file)  # rich would replace tabs
    add_products(directory, model.step, texts={"samples": written})
    if config.predictions.tokens:
        path = directory.predictions / "validation.npz"
        predicted = write_predictions(model, corpus.validation, config.predictions, config.seed, path)
        console.print(f"predictions of {len(predicted):,} tokens by checkpoint {model.step} are in {path}")


def introduction(config: PretrainConfig, corpus: Corpus, mesh: Mesh | None) -> str:
    """A few lines about what will be trained."""
    devices = jax.devices()
    tokens_per_step = config.training.batch_size * config.model.size_of_sequence
    total = tokens_per_step * config.training.steps
    attention = describe_attention(config.model, mesh, masked=config.objective.name == "prefix")
    return (
        f"{parameter_count(config.model):,} parameters on {len(devices)} x {devices[0].device_kind}\n"
        f"{attention}\n"
        f"{corpus.train.num_documents:,} documents, {corpus.train.num_tokens:,} tokens for training; "
        f"{corpus.validation.num_documents:,} documents, {corpus.validation.num_tokens:,} tokens for validation\n"
        f"{config.training.steps:,} steps of {tokens_per_step:,} tokens: {total / corpus.train.num_tokens:.2f} epochs"
    )


def parse_profile(text: str | None) -> range | None:
    """The steps FIRST to LAST as a range.

    Raises:
      UserError: if the text has another form.
    """
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
        raise UserError(f"--profile={text} must be FIRST:LAST, such as 20:25")
    return range(int(first), int(last) + 1)


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
