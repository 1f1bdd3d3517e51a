"""Compares two models on the same rows: which is better, and could that be chance?

python -m experiments.compare --one=runs/sst2_random --other=runs/sst2_pretrained

reads predictions/test.npz and test.jsonl of each work directory, as experiments.evaluate wrote them; of pretraining
runs, predictions/validation.npz (--split=validation). Runs that differ only in their seed can be grouped, to compare
training methods rather than single runs:

python -m experiments.compare --one=runs/a_0 --one=runs/a_1 --one=runs/a_2 --other=runs/b_0 --other=runs/b_1
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy import stats

from lm.calibration.binning import Binning
from lm.calibration.errors import ece
from lm.calibration.logits import FactoredLogits
from lm.calibration.noise_floor import bin_features, totals_of_sums
from lm.calibration.predictions import Predictions
from lm.command_line import run
from lm.console import Console
from lm.errors import UserError
from lm.evaluation.generation import generation_metrics
from lm.evaluation.spans import span_metrics
from lm.evaluation.tagging import entity_metrics, entity_scheme
from lm.files import file_digest, is_unchanged, json_value, read_json
from lm.runs.config import FinetuneConfig
from lm.runs.work_directory import WorkDirectory, names_of_runs
from lm.statistics.comparisons import Difference, paired_difference
from lm.statistics.metrics import Metric, Ratio, mean_metric
from lm.statistics.seeds import SeedSummary, seed_summary
from lm.statistics.units import shown, shown_change
from lm.tasks.supervised import TaskConfig

_BINNING = Binning(15)
_OF_MODEL = ("predicted", "confidence", "probabilities", "label_mass")  # what records of the same row may differ in
_SIGNIFICANT, _POWER = 0.05, 0.8

Record = Mapping[str, Any]


class Compared(NamedTuple):
    """A metric of both sides.

    Attributes:
      one: over the seeds of the first side.
      other: over those of the second.
      difference: other minus one, paired.
      items: the number of rows, or of clusters of rows.
    """

    one: SeedSummary
    other: SeedSummary
    difference: Difference
    items: int


class Run(NamedTuple):
    """What a run's files hold of one split.

    Attributes:
      directory: as named on the command line.
      predictions: of classes; None for a task without them.
      records: of rows; empty without a file.
      figures: metrics that experiments.evaluate reported, by name.
      metric_tokenizer: how its text metrics split words.
    """

    directory: str
    predictions: Predictions | None
    records: Sequence[Record]
    figures: Mapping[str, Any]
    metric_tokenizer: str


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
        figures = {name: [*map(dataclasses.asdict, each[:3]), _power_json(each)] for name, each in found.items()}
        print(json.dumps(json_value(figures), allow_nan=False))
        return
    console = Console()
    console.print(as_table(found, values.split, values.one, values.other))
    for name, compared in found.items():
        if sentence := undecided(name, compared):
            console.print(sentence)


def compare(one: Sequence[str], other: Sequence[str], split: str = "test") -> dict[str, Compared]:
    """Each metric of both sides over their seeds, and the paired difference, other minus one.

    Accuracy, loss, Brier score and ECE of classes, perplexity of next tokens, and the task's own metrics as far as
    each run has records of its rows. Intervals and p-values are over rows (or clusters of rows), so they generalize to
    other rows, not other seeds; the standard errors of the sides show the variation between seeds.

    Raises:
      UserError: if predictions are missing or for different rows.
    """
    sides = [[read_run(directory, split) for directory in side] for side in (one, other)]
    runs = [*sides[0], *sides[1]]
    found = {}
    if all(each.predictions is not None for each in runs):
        clusters_N = _common_clusters(runs)
        for name, metric_of in _class_metrics(runs).items():
            found[name] = _compared([[metric_of(each) for each in side] for side in sides], clusters_N)
    if all(each.records for each in runs):
        _check_rows(runs)
        by_run = [[_task_metrics(each) for each in side] for side in sides]
        shared = set.intersection(*(set(metrics) for side in by_run for metrics in side))
        for name in (name for name in by_run[0][0] if name in shared):
            found[name] = _compared([[metrics[name] for metrics in side] for side in by_run], None)
    if not found:
        raise UserError(f"the {split} files of {', '.join(map(str, (*one, *other)))} have no metric in common")
    return found


def read_run(directory: str, split: str) -> Run:
    """The files of a run.

    Raises:
      UserError: if there are none, or they cannot be read.
    """
    run_directory = WorkDirectory(Path(directory))
    folder = run_directory.predictions
    arrays, lines, figures = (folder / f"{split}{suffix}" for suffix in (".npz", ".jsonl", ".metrics.json"))
    if not run_directory.path.is_dir():
        raise UserError(f"{directory} does not exist: train a run there, or name another")
    if not arrays.is_file() and run_directory.prompt.exists():
        raise UserError(f"{arrays} does not exist: run the command of experiments.prompt that made {directory} again")
    if not arrays.is_file() and not lines.is_file():
        raise UserError(
            f"{arrays} does not exist: run experiments.evaluate --workdir={directory} --config.split={split}"
            + (", or compare pretraining runs with --split=validation" if split == "test" else "")
        )
    config = run_directory.load_config() if run_directory.config.is_file() else None
    task = config.task if isinstance(config, FinetuneConfig) else TaskConfig()
    # Records of rows count only with the metrics that were reported of them.
    metrics = _reported(figures, (arrays, lines)) if figures.exists() or lines.is_file() else {}
    return Run(
        directory,
        Predictions.load(arrays) if arrays.is_file() else None,
        _read_records(lines) if lines.is_file() else (),
        metrics,
        task.metric_tokenizer,
    )


def _reported(path: Path, others: Sequence[Path]) -> Mapping[str, Any]:
    """The metrics that experiments.evaluate wrote, which belong to the other files; earlier versions did not say so.

    Raises:
      UserError: if it or one of the others was changed.
    """
    if not path.exists():
        raise UserError(f"{path} is missing: run experiments.evaluate again")
    record = read_json(path)
    if not isinstance(record, dict) or ("digest" in record and not is_unchanged(record)):
        raise UserError(f"{path} is not what experiments.evaluate wrote: run it again")
    digests = record.get("files", {})
    for file in others:
        if file.name in digests and (not file.is_file() or file_digest(file) != digests[file.name]):
            raise UserError(f"{file} is not the file that experiments.evaluate wrote with {path.name}: run it again")
    metrics = record.get("metrics")
    return metrics if isinstance(metrics, dict) else {}


def _read_records(path: Path) -> list[Record]:
    records = []
    try:
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                records.append(json.loads(line))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not what experiments.evaluate wrote: {error}") from error
    if not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path} is not what experiments.evaluate wrote: each line must be an object")
    return records


# --- the same rows ---


def _common_clusters(runs: Sequence[Run]) -> np.ndarray | None:
    first = runs[0].predictions
    assert first is not None
    for each in runs:
        ids_N = each.predictions.ids_N if each.predictions is not None else None
        is_same = np.array_equal(ids_N, first.ids_N) if first.ids_N is not None else ids_N is None
        if not is_same or len(each.predictions or ()) != len(first):
            raise UserError(f"{each.directory}: its predictions are for other rows than those of {runs[0].directory}")
        assert each.predictions is not None
        for name in ("labels", "clusters", "weights"):
            ours, others = (getattr(part, f"{name}_N") for part in (first, each.predictions))
            if (ours is None) != (others is None) or not np.array_equal(ours, others):
                raise UserError(f"{each.directory}: the {name} of its rows differ from those of {runs[0].directory}")
    return first.clusters_N


def _check_rows(runs: Sequence[Run]) -> None:
    rows = [[{k: v for k, v in record.items() if k not in _OF_MODEL} for record in each.records] for each in runs]
    for each, of_run in zip(runs, rows, strict=True):
        if of_run != rows[0]:
            raise UserError(f"{each.directory}: its rows are others than those of {runs[0].directory}")


# --- metrics ---


def _class_metrics(runs: Sequence[Run]) -> dict[str, Callable[[Run], Metric]]:
    """Metrics of predicted classes; each item's outcomes are computed once."""
    found = {}
    assert runs[0].predictions is not None
    weights_N = runs[0].predictions.weights_N
    for each in runs:
        assert each.predictions is not None
        found[each.directory] = each.predictions.outcomes()
    metrics = {
        "accuracy": lambda each: mean_metric(found[each.directory].correct_N, weights_N),
        "loss": lambda each: mean_metric(found[each.directory].nll_N, weights_N),
        "brier": lambda each: mean_metric(found[each.directory].brier_N, weights_N),
        "ece": lambda each: _ece(*found[each.directory][:2], weights_N),
    }
    if all(isinstance(each.predictions.logits, FactoredLogits) for each in runs if each.predictions is not None):
        metrics["perplexity"] = lambda each: dataclasses.replace(metrics["loss"](each), of_sums=_perplexity)
    return metrics


def _ece(confidence_N: np.ndarray, correct_N: np.ndarray, weights_N: np.ndarray | None) -> Metric:
    features_NF = bin_features(confidence_N, correct_N, _BINNING, weights_N=weights_N).toarray()
    return Metric(features_NF, lambda sums: ece(totals_of_sums(sums)))


def _perplexity(sums: np.ndarray) -> np.ndarray:
    return np.exp(sums[..., 0] / sums[..., 1])


def _task_metrics(each: Run) -> dict[str, Metric]:
    """Metrics of the rows' records, as far as they are those that experiments.evaluate reported."""
    records, first, tokenizer = each.records, each.records[0], each.metric_tokenizer
    metrics: dict[str, Metric] = {}
    try:
        if "tags" in first and entity_scheme(
            {tag for record in records for tag in (*record["tags"], *record["predicted"])}
        ):
            of_types = entity_metrics(*([record[name] for record in records] for name in ("tags", "predicted")))
            metrics = {name: _of_all_types(of_types[name]) for name in ("f1", "precision", "recall")}
        elif "answers" in first:
            metrics = span_metrics(*([record[name] for record in records] for name in ("predicted", "answers")))
        elif target := next((name for name in ("target", "completion") if name in first), None):
            metrics = generation_metrics(
                [record["predicted"] for record in records], [record[target] for record in records], tokenizer
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{each.directory}: its records are not those of experiments.evaluate ({error!r})") from error
    reported = {name: figure.get("value") for name, figure in each.figures.items() if isinstance(figure, dict)}
    return {name: metric for name, metric in metrics.items() if _is_close(metric.value, reported.get(name))}


def _tags(records: Sequence[Record]) -> set[str]:
    return {tag for record in records for tag in (*record["tags"], *record["predicted"])}


def _of_all_types(metric: Metric) -> Metric:
    """An entity metric whose counts are summed over types, of which two models may find different ones."""
    counts_N3 = np.asarray(metric.statistics_NK).reshape(len(metric.statistics_NK), 3, -1).sum(axis=2)
    return dataclasses.replace(metric, statistics_NK=counts_N3)


def _is_close(value: float, reported: Any) -> bool:
    return isinstance(reported, int | float) and math.isclose(value, reported, rel_tol=1e-6, abs_tol=1e-9)


def _compared(sides: Sequence[Sequence[Metric]], clusters_N: np.ndarray | None) -> Compared:
    seeds = math.lcm(*map(len, sides))
    one, other = (_mean_over_seeds(side, seeds) for side in sides)
    summaries = [seed_summary([metric.value for metric in side]) for side in sides]
    items = len(one.statistics_NK) if clusters_N is None else np.unique(clusters_N).size
    return Compared(*summaries, paired_difference(one, other, clusters_N=clusters_N), int(items))


def _mean_over_seeds(metrics: Sequence[Metric], seeds: int) -> Metric:
    """The mean of a metric over runs, as a metric of the same items.

    Each run is repeated until there are as many as `seeds`, so that both sides have the same statistics to swap.
    """
    first, repeats = metrics[0], seeds // len(metrics)
    statistics_SNK = np.stack([np.asarray(metric.statistics_NK, np.float64) for metric in metrics])
    if isinstance(first.of_sums, Ratio):
        return dataclasses.replace(first, statistics_NK=statistics_SNK.mean(axis=0))

    def mean_of(sums: np.ndarray) -> np.ndarray:
        return np.mean([first.of_sums(of_run) for of_run in np.split(sums, seeds, axis=-1)], axis=0)

    return Metric(np.concatenate(list(statistics_SNK) * repeats, axis=1), mean_of)


# --- what is said ---


def items_needed(compared: Compared) -> int | None:
    """How many items would show a difference of this size at 5% in 80% of cases; None if it is 0 or unknown."""
    difference = compared.difference
    error = (difference.high - difference.low) / (2 * stats.norm.ppf(1 - _SIGNIFICANT / 2))
    if not math.isfinite(error) or not difference.value:
        return None
    reach = stats.norm.ppf(1 - _SIGNIFICANT / 2) + stats.norm.ppf(_POWER)
    return math.ceil(compared.items * (reach * error / difference.value) ** 2)


def undecided(name: str, compared: Compared) -> str:
    """A sentence for a difference that may be chance; empty for others."""
    difference = compared.difference
    if not difference.p > _SIGNIFICANT:
        return ""
    sentence = f"{name}: not distinguishable at N = {compared.items:,}"
    needed = items_needed(compared)
    if needed is None:
        return sentence
    needed = round(needed, 2 - len(str(needed)))
    return (
        f"{sentence}; about {needed:,} items would be needed for a difference of {shown_change(name, difference.value)}"
    )


def _power_json(compared: Compared) -> dict[str, int | None]:
    return {"items": compared.items, "items_needed": items_needed(compared)}


def as_table(found: Mapping[str, Compared], split: str, one: Sequence[str], other: Sequence[str]) -> Table:
    """The table for the console, with the sides named by their directories."""
    names = names_of_runs([*one, *other])
    sides = [", ".join(names[: len(one)]), ", ".join(names[len(one) :])]
    if sides[0] == sides[1]:
        sides = [f"{sides[0]} (one)", f"{sides[1]} (other)"]
    table = Table(title=f"{sides[1]} minus {sides[0]}, on the {split} rows", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("", *sides, "difference", "95% interval", "p"):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    for name, (of_one, of_other, difference, _) in found.items():
        table.add_row(
            name,
            _with_error(name, of_one),
            _with_error(name, of_other),
            shown_change(name, difference.value),
            _interval(name, difference),
            format_p(difference.p),
        )
    if any(math.isnan(difference.p) for *_, difference, _ in found.values()):
        table.caption = "p and intervals need at least two rows, or two clusters of rows"
    return table


def format_p(p: float) -> str:
    """Such as "0.041" or "<0.001"; "-" where there is none."""
    if math.isnan(p):
        return "-"
    return "<0.001" if p < 0.0005 else f"{p:.3f}"


def _interval(name: str, difference: Difference) -> str:
    if math.isnan(difference.low):
        return "-"
    return f"{shown_change(name, difference.low).removesuffix(' pp')} to {shown_change(name, difference.high)}"


def _with_error(name: str, summary: SeedSummary) -> str:
    if summary.seeds < 2:
        return shown(name, summary.mean)
    return f"{shown(name, summary.mean)} ± {shown(name, summary.standard_error)} ({summary.seeds} seeds)"


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
