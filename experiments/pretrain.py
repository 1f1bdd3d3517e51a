"""Pretrains a language model: decoder, encoder or encoder-decoder, on text without labels.

python -m experiments.pretrain --config=configs/quickstart.py --workdir=runs/quickstart

The same command resumes a run that was stopped. Every config key can be changed: --config.training.steps=500.
"""

from collections.abc import Callable
from pathlib import Path

import jax
from absl import flags

from lm.command_line import define_config_file, overridden, run
from lm.configuration import from_config_dict
from lm.console import Console
from lm.data.config import check_overridden_sources
from lm.data.store import Corpus, build_corpus
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.inference.load import in_use
from lm.inference.predictions import write_predictions
from lm.inference.samples import write_samples
from lm.models.accounting import parameter_count
from lm.objectives.objective import PretrainingTask, TextProperties
from lm.objectives.registry import make_task, special_tokens
from lm.runs.config import PretrainConfig
from lm.runs.host_memory import keep_freed_memory
from lm.runs.trained_run import TrainedRun, load_source
from lm.runs.work_directory import WorkDirectory, with_vocabulary
from lm.training.evaluation import describe
from lm.training.initial_parameters import params_of_source
from lm.training.loop import Outcome, Trainer, check_batch_size
from lm.training.partitioning import make_partitioner
from lm.training.pretraining import pretraining_problem


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config_file(values)
    flags.DEFINE_string(
        "workdir", None, "Directory of the run: created if missing, resumed if not.", flag_values=values
    )
    flags.DEFINE_string(
        "profile", None, "FIRST:LAST steps to record for TensorBoard's profiler, such as 20:25.", flag_values=values
    )
    flags.DEFINE_bool(
        "distributed", False, "Call jax.distributed.initialize() first: one process per host.", flag_values=values
    )


def main(values: flags.FlagValues) -> int:
    """Trains; returns the exit status."""
    if values.distributed:
        jax.distributed.initialize()
    if not values.workdir:
        raise UserError("--workdir is missing: name a directory for the run, such as --workdir=runs/quickstart")
    config = from_config_dict(PretrainConfig, values.config)
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
) -> Outcome:
    """Trains a model in a work directory, from its newest checkpoint if it has one.

    Args:
      config: of the run.
      directory: of the run.
      console: for progress.
      profile: steps to record for TensorBoard's profiler.
      on_evaluation: is called with the step and the metrics of each evaluation, and may raise to end the run.

    Raises:
      UserError: if the config, the data or the directory is invalid; nothing is written then.
      TrainingError: if a loss is not finite.
    """
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
    corpus = build_corpus(config.data, config.tokenizer, kept, special_tokens(config.objective))
    full_config = with_vocabulary(config, corpus.tokenizer)
    text = TextProperties.of(corpus, full_config.model.vocab_size)
    task = make_task(config.objective, full_config.model, corpus.tokenizer, partitioner.mesh, text)
    check_products(full_config, task)
    params = None if source is None else params_of_source(config, task, source, console)
    problem = pretraining_problem(full_config, task, corpus, partitioner, params)
    trainer = Trainer(
        full_config, problem, partitioner, directory, console, on_evaluation=on_evaluation, profile=profile
    )
    directory.claim(config, corpus.tokenizer)
    console.print(introduction(full_config, corpus))
    outcome = trainer.train()
    if outcome.stopped_by:
        step = int(outcome.state.step)
        console.print(f"{outcome.stopped_by.name}: saved at step {step}; run the same command to resume")
    elif jax.process_index() == 0:
        console.print(f"done: {describe(outcome.validation)}")
        write_products(full_config, corpus, outcome, directory, console)
        console.print(f"everything is in {directory.path}")
    return outcome


def check_products(config: PretrainConfig, task: PretrainingTask) -> None:
    """Checks that the objective supports the outputs requested at the end.

    Raises:
      UserError: if not.
    """
    if config.predictions.tokens and not task.counts_bytes:
        raise UserError(
            f"config.predictions.tokens needs config.objective.name=causal, not {config.objective.name}: set it to 0"
        )


def write_products(
    config: PretrainConfig, corpus: Corpus, outcome: Outcome, directory: WorkDirectory, console: Console
) -> None:
    """Writes samples and predictions, if the model can continue texts."""
    if config.model.architecture != "decoder":
        return
    # The mesh is for training; a few samples are made on one device.
    params = jax.device_get(outcome.state.evaluation_params)
    task = make_task(config.objective, config.model, corpus.tokenizer)
    model = in_use(TrainedRun(config, corpus.tokenizer, (), task, params, int(outcome.state.step)))
    print(write_samples(model, config.samples, directory.samples), file=console.file)  # rich would replace tabs
    if config.predictions.tokens:
        path = directory.predictions / "validation.npz"
        predicted = write_predictions(model, corpus.validation, config.predictions, config.seed, path)
        console.print(f"predictions of {len(predicted):,} tokens are in {path}")


def introduction(config: PretrainConfig, corpus: Corpus) -> str:
    """A few lines about what will be trained."""
    devices = jax.devices()
    tokens_per_step = config.training.batch_size * config.model.max_length
    total = tokens_per_step * config.training.steps
    return (
        f"{parameter_count(config.model):,} parameters on {len(devices)} x {devices[0].device_kind}\n"
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
