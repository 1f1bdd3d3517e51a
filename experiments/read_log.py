"""Turns logs of lm-evaluation-harness or Inspect into predictions, to measure and calibrate.

python -m experiments.read_log --source=results/runs__mine/samples_hellaswag_DATE.jsonl --output=hellaswag.npz
python -m experiments.read_log --source=logs/mmlu.eval --confidence=answer --output=mmlu.npz
python -m experiments.calibrate --config=configs/calibrate.py --config.predictions=mmlu.npz --workdir=runs/mmlu

Of the harness, samples_*.jsonl of multiple-choice tasks are read, written with --log_samples; of Inspect, .eval and
.json. Several logs of one tool, each a --source, make one file. To compare two models on the same items, write
--output=runs/NAME/predictions/test.npz for each, and use experiments.compare.
"""

from pathlib import Path

import numpy as np
from absl import flags

from lm.calibration.logs.harness import NORMALIZATIONS
from lm.calibration.logs.inspect import CONFIDENCES
from lm.calibration.logs.items import Log
from lm.calibration.logs.read import read_logs
from lm.command_line import run
from lm.console import Console
from lm.errors import UserError
from lm.files import check_writable


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    flags.DEFINE_multi_string("source", None, "A log; may be repeated.", flag_values=values)
    flags.DEFINE_string("output", None, "The npz file to write.", flag_values=values)
    flags.DEFINE_enum(
        "normalization",
        "sum",
        list(NORMALIZATIONS),
        "Harness: how log-likelihoods of options are compared, as in acc, acc_norm, acc_bytes, acc_mutual_info.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "confidence",
        "auto",
        ["auto", *CONFIDENCES],
        "Inspect: of all options, of the answer's letter, or stated by the model; auto: the first that the log has.",
        flag_values=values,
    )
    flags.DEFINE_string("scorer", "", "Inspect: which scorer says what is right, if several do.", flag_values=values)
    flags.DEFINE_string(
        "stated", "confidence", "Inspect: name of a stated confidence, in the metadata of scores.", flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    """Reads and writes."""
    if not values.source:
        raise UserError("--source is missing: name samples_*.jsonl of lm-evaluation-harness, or .eval of Inspect")
    if not values.output:
        raise UserError("--output is missing: name the npz file to write")
    output = Path(values.output).expanduser()
    check_writable(output.parent, f"--output={values.output}")
    paths = [Path(name).expanduser() for name in values.source]
    log = read_logs(paths, values.normalization, values.confidence, values.scorer, values.stated)
    log.predictions.save(output)
    console = Console(stderr=True)
    for note in log.notes:
        console.print(f"(!) {note}")
    Console().print(f"{output}: {summary(log)}")


def summary(log: Log) -> str:
    """Items, accuracy and mean confidence, in one line."""
    found, clusters_N = log.predictions.outcomes(), log.predictions.clusters_N
    number, documents = len(log.predictions), np.unique(clusters_N).size
    items = f"{number:,} items" + (f" of {documents:,} documents" if documents < number else "")
    accuracy, confidence = found.correct_N.mean(), found.confidence_N.mean()
    return f"{items}, accuracy {accuracy:.1%}, mean confidence {confidence:.1%}, of {log.confidence}"


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
