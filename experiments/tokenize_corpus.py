"""Tokenizes a corpus into shards that training reads in place: for texts larger than a disk or a machine.

python -m experiments.tokenize_corpus --config=configs/shards.py --output=shards/python
python -m experiments.tokenize_corpus --config=configs/shards.py --output=gs://bucket/web --part=3/100 \\
    --config.data.source="jsonl:gs://bucket/text/*.jsonl.gz"
python -m experiments.tokenize_corpus --config=configs/shards.py --output=shards/python \\
    --beam="--direct_num_workers=8 --direct_running_mode=multi_processing"

Then train with --config.data.source=shards:DIR. The same command goes on after an interruption: whole shards are kept.
Hosts share the work by --part, or as workers of Apache Beam, which --beam configures.
"""

import re

from absl import flags

from lm.command_line import define_config_file, run
from lm.console import Console
from lm.data.sharding import Job, ShardsConfig, check_beam, make_shards
from lm.errors import UserError


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config_file(values, ShardsConfig)
    flags.DEFINE_string("output", None, "Folder for the shards, local or such as gs://BUCKET/DIR.", flag_values=values)
    flags.DEFINE_string(
        "part",
        "0/1",
        "I/N: make only the shards I, I + N, I + 2N, ..., from 0, as one of N processes.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "beam",
        None,
        "Make the shards with Apache Beam and these options, separated by spaces; empty is its local runner.",
        flag_values=values,
    )


def main(values: flags.FlagValues) -> None:
    """Makes this part's shards and, when all are there, the index."""
    if not values.output:
        raise UserError("--output is missing: name a folder for the shards, such as --output=shards/python")
    index, count = parse_part(values.part)
    if values.beam is not None and count > 1:
        raise UserError("--part and --beam both share the work: leave one out")
    tokenize_corpus(values.config, values.output, index, count, None if values.beam is None else values.beam.split())


def tokenize_corpus(
    config: ShardsConfig, output: str, part: int = 0, parts: int = 1, beam_options: list[str] | None = None
) -> None:
    """Makes one part's shards and, when all are there, the index.

    Args:
      config: of the shards.
      output: their folder.
      part: which part of the shards, from 0.
      parts: number of parts.
      beam_options: see `lm.data.sharding.make_shards`.

    Raises:
      UserError: if a shard cannot be made, or Beam is wanted and not installed.
    """
    console = Console(stderr=True)
    if beam_options is not None:
        check_beam()
    job = Job.of(config, output).with_tokenizer(may_train=part == 0)
    own = range(part, job.shards, parts)
    console.print(f"{len(own):,} of {job.shards:,} shards of {len(job.files):,} files", soft_wrap=True)
    make_shards(job, own, beam_options, console.print)
    if missing := job.finish():
        console.print(f"{missing:,} shards are missing: the part that makes the last one writes the index")
        return
    windows = sum(record["windows"] for record in job.records())
    console.print(
        f"{windows:,} windows of {config.window:,} tokens: train with --config.data.source=shards:{output}",
        soft_wrap=True,
    )


def parse_part(text: str) -> tuple[int, int]:
    """I and N of "I/N".

    Raises:
      UserError: if the text has another form.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--part={text} must be I/N with I from 0 to N - 1, such as 0/8")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
