"""Pretrains a decoder-only language model.

python -m experiments.pretrain --config=configs/quickstart.py --workdir=runs/quickstart

The same command goes on where a run was stopped. Every config key can be changed: --config.training.steps=500.
"""

from pathlib import Path

import jax
from absl import flags
from rich.console import Console

from lm.command_line import define_config_file, run
from lm.configuration import from_config_dict
from lm.data.store import Corpus, build_corpus
from lm.errors import UserError
from lm.models.accounting import parameter_count
from lm.models.decoder_lm import DecoderLM
from lm.tasks.causal_lm import CausalLM
from lm.tasks.token_reliability import TokenBuckets
from lm.training.config import PretrainConfig
from lm.training.host_memory import keep_freed_memory
from lm.training.loop import Outcome, Trainer, check_batch_size, describe
from lm.training.partitioning import make_partitioner
from lm.training.predictions import write_predictions
from lm.training.samples import write_samples
from lm.training.work_directory import WorkDirectory, with_vocabulary


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config_file(values)
    flags.DEFINE_string(
        "workdir", None, "Directory of the run: made when missing, gone on with when not.", flag_values=values
    )
    flags.DEFINE_string(
        "profile", None, "FIRST:LAST steps to record for TensorBoard's profiler, such as 20:25.", flag_values=values
    )
    flags.DEFINE_bool(
        "distributed", False, "Call jax.distributed.initialize() first: one process a host.", flag_values=values
    )


def main(values: flags.FlagValues) -> int:
    """Trains; returns the exit status."""
    if values.distributed:
        jax.distributed.initialize()
    if not values.workdir:
        raise UserError("--workdir is missing: name a directory for the run, such as --workdir=runs/quickstart")
    config = from_config_dict(PretrainConfig, values.config)
    console = Console(stderr=True, quiet=jax.process_index() != 0)
    outcome = pretrain(config, WorkDirectory(Path(values.workdir)), console, parse_profile(values.profile))
    return 128 + outcome.stopped_by if outcome.stopped_by else 0


def pretrain(
    config: PretrainConfig, directory: WorkDirectory, console: Console, profile: range | None = None
) -> Outcome:
    """Trains a model in a work directory, from its newest checkpoint if it has one.

    Raises:
      UserError: for whatever is wrong with the config, the data or the directory; nothing is written then.
      TrainingError: if a loss is not finite.
    """
    directory.check(config)
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    partitioner = make_partitioner(config.partitioning)
    check_batch_size(config, partitioner)
    corpus = build_corpus(config.data, config.tokenizer, directory.tokenizer if directory.tokenizer.exists() else None)
    full_config = with_vocabulary(config, corpus.tokenizer)
    # A text without borders needs no mask to keep documents apart.
    one_segment = corpus.train.num_documents == corpus.validation.num_documents == 1
    buckets = TokenBuckets.of_text(corpus.train.tokens, full_config.model.vocab_size)
    task = CausalLM(DecoderLM(full_config.model, partitioner.mesh), config.objective, one_segment, buckets)
    trainer = Trainer(full_config, task, corpus, partitioner, directory, console, profile)
    directory.claim(config, corpus.tokenizer)
    console.print(introduction(full_config, corpus), soft_wrap=True, highlight=False)
    outcome = trainer.train()
    if outcome.stopped_by:
        step = int(outcome.state.step)
        console.print(f"{outcome.stopped_by.name}: saved at step {step}; the same command goes on from there")
    elif jax.process_index() == 0:
        console.print(f"done: {describe(outcome.validation)}", soft_wrap=True, highlight=False)
        text = write_samples(task.model, outcome.state, corpus.tokenizer, config.samples, directory.samples)
        print(text, file=console.file)  # rich would replace tabs
        if config.predictions.tokens:
            params = jax.device_get(outcome.state.evaluation_params)
            path = directory.predictions / "validation.npz"
            model = DecoderLM(full_config.model)
            predicted = write_predictions(model, params, corpus.validation, config.predictions, config.seed, path)
            console.print(f"predictions of {len(predicted):,} tokens are in {path}", soft_wrap=True, highlight=False)
        console.print(f"everything is in {directory.path}", soft_wrap=True, highlight=False)
    return outcome


def introduction(config: PretrainConfig, corpus: Corpus) -> str:
    """A few lines on what is about to be trained."""
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
      UserError: if the text is anything else.
    """
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
        raise UserError(f"--profile={text} must be FIRST:LAST, such as 20:25")
    return range(int(first), int(last) + 1)


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
