"""Compares two classifiers on the same rows: which is better, and could that be chance?

python -m experiments.compare --one=runs/sst2_random --other=runs/sst2_pretrained

reads predictions/test.npz of each work directory. Runs that differ only in their seed can be grouped, to compare
training methods rather than single runs:

python -m experiments.compare --one=runs/a_0 --one=runs/a_1 --one=runs/a_2 --other=runs/b_0 --other=runs/b_1
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from rich.table import Table

from lm.calibration.predictions import Predictions
from lm.command_line import run
from lm.console import Console
from lm.errors import UserError
from lm.files import json_value
from lm.runs.work_directory import WorkDirectory
from lm.statistics.comparisons import Difference, paired_mean_difference
from lm.statistics.seeds import SeedSummary, seed_summary

METRICS = ("accuracy", "loss")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    flags.DEFINE_multi_string(
        "one", None, "Work directory of the first run; repeat it for further seeds.", flag_values=values
    )
    flags.DEFINE_multi_string("other", None, "Work directory of the second run; likewise.", flag_values=values)
    flags.DEFINE_string("split", "test", "Which predictions: test or validation.", flag_values=values)
    flags.DEFINE_bool("json", False, "Print a JSON object instead of a table.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Compares and prints."""
    if not values.one or not values.other:
        raise UserError(
            "--one and --other must each name the work directory of a run evaluated by experiments.evaluate"
        )
    found = compare(values.one, values.other, values.split)
    if values.json:
        figures = {name: [dataclasses.asdict(each) for each in of_name] for name, of_name in found.items()}
        print(json.dumps(json_value(figures), allow_nan=False))
    else:
        Console().print(as_table(found, values.split))


def compare(
    one: Sequence[str], other: Sequence[str], split: str = "test"
) -> dict[str, tuple[SeedSummary, SeedSummary, Difference]]:
    """Each metric of both sides over their seeds, and the paired difference, other minus one.

    Each row's value is its mean over the seeds of a side; interval and p-value are Student's t over rows (or clusters
    of rows), so they generalize to other rows, not other seeds. The standard errors of the sides show the variation
    between seeds.

    Raises:
      UserError: if predictions are missing or for different rows.
    """
    sides = [[_load(directory, split) for directory in side] for side in (one, other)]
    first = sides[0][0]
    for directory, predictions in zip((*one, *other), (*sides[0], *sides[1]), strict=True):
        if not np.array_equal(predictions.ids_N, first.ids_N):
            raise UserError(f"{directory}: its predictions are for other rows than those of {one[0]}")
    found = {}
    for name in METRICS:
        values = [np.stack([_per_row(predictions, name) for predictions in side]) for side in sides]
        summaries = [seed_summary(side_SN.mean(axis=1).tolist()) for side_SN in values]
        rows = [side_SN.mean(axis=0) for side_SN in values]
        found[name] = (*summaries, paired_mean_difference(*rows, clusters_N=first.clusters_N))
    return found


def as_table(found: dict[str, tuple[SeedSummary, SeedSummary, Difference]], split: str) -> Table:
    """The table for the console."""
    table = Table(title=f"other minus one, on the {split} rows")
    for column in ("", "one", "other", "difference", "95% interval", "p"):
        table.add_column(column, justify="right" if column else "left")
    for name, (one, other, difference) in found.items():
        table.add_row(
            name,
            _with_error(one),
            _with_error(other),
            f"{difference.value:+.4f}",
            "-" if math.isnan(difference.low) else f"{difference.low:+.4f} to {difference.high:+.4f}",
            format_p(difference.p),
        )
    if any(math.isnan(difference.p) for *_, difference in found.values()):
        table.caption = "p and intervals need at least two rows, or two clusters of rows"
    return table


def format_p(p: float) -> str:
    """Such as "0.041" or "<0.001"; "-" where there is none."""
    if math.isnan(p):
        return "-"
    return "<0.001" if p < 0.0005 else f"{p:.3f}"


def _load(directory: str, split: str) -> Predictions:
    path = WorkDirectory(Path(directory)).predictions / f"{split}.npz"
    if not path.is_file():
        raise UserError(f"{path} does not exist: run experiments.evaluate --workdir={directory} --config.split={split}")
    return Predictions.load(path)


def _per_row(predictions: Predictions, name: str) -> np.ndarray:
    found = predictions.outcomes()
    return np.asarray(found.correct_N if name == "accuracy" else found.nll_N, np.float64)


def _with_error(summary: SeedSummary) -> str:
    if summary.seeds < 2:
        return f"{summary.mean:.4f}"
    return f"{summary.mean:.4f} ± {summary.standard_error:.4f} ({summary.seeds} seeds)"


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
