"""Baselines without a neural network: the classes' frequencies, and a logistic regression on bags of words.

python -m experiments.baseline --config=configs/trec.py --workdir=runs/trec_baseline

takes the rows of a fine-tuning config and writes the same files as experiments.evaluate, for comparison. Features are
tf-idf weighted words and word pairs, classified by scikit-learn's logistic regression; for tagging they are a word, its
neighbours, its case and its first and last letters. The other baseline predicts the most frequent class for every row,
with the share of each class among the training rows as its probability. Textbook cleaning:
--config.data.cleaning="('english_stop_words','english_stemming')".
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich.text import Text
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from experiments.evaluate import show
from experiments.finetune import check_rows
from lm.command_line import define_config_file, overridden, run
from lm.console import Console
from lm.data.config import check_overridden_sources
from lm.data.rows import read_examples
from lm.errors import UserError
from lm.runs.config import FinetuneConfig
from lm.runs.results import Evaluation, write_results
from lm.runs.work_directory import WorkDirectory
from lm.tasks.registry import classes_of, columns_of
from lm.tasks.sequence_classification import classification_results
from lm.tasks.supervised import Results, Row, TaskConfig
from lm.tasks.token_classification import tagging_results

_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)  # inverse regularization, chosen on the validation rows
_IMPOSSIBLE = 1e-9  # probability of a class that the training rows lack


@dataclasses.dataclass(frozen=True)
class Items:
    """Items to classify: texts, or the words of sentences.

    Attributes:
      features: of each item, in its vectorizer's format.
      labels: of each item.
    """

    features: list[Any]
    labels: list[str]


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config_file(values, FinetuneConfig)
    flags.DEFINE_string("workdir", None, "Directory for the results.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Fits, evaluates and prints."""
    if not values.workdir:
        raise UserError("--workdir is missing: name a directory for the results, such as --workdir=runs/trec_baseline")
    check_overridden_sources(values.config.data, overridden(values))
    directory, console = WorkDirectory(Path(values.workdir)), Console(stderr=True)
    baseline(values.config, directory, console)
    console.print(f"everything is in {directory.predictions}")


def baseline(config: FinetuneConfig, directory: WorkDirectory, console: Console) -> dict[str, Evaluation]:
    """Writes and returns the results of both baselines, by file name.

    Raises:
      UserError: for a task without classes, or for invalid rows.
    """
    task = config.task
    if task.name not in ("classification", "tagging"):
        raise UserError(f"config.task.name={task.name} has no classes: there is no baseline for it")
    check_directory(config, directory)
    splits = read_examples(config.data, *columns_of(task))
    check_rows(config, splits)
    classes = classes_of(task, splits.train)
    train, validation = items_of(task, splits.train), items_of(task, splits.validation)
    unknown = next((label for label in train.labels if label not in classes), None)
    if unknown is not None:
        raise UserError(f"config.task.classes lacks {unknown!r}, which training rows have: add it")
    name, part = ("test", splits.test) if splits.test else ("validation", splits.validation)
    with console.status("fitting logistic regressions") as status:
        model = best_regression(
            task,
            train,
            validation,
            progress=lambda number: status.update(Text(f"fitting logistic regressions: {number} of {len(_STRENGTHS)}")),
        )
    found = {}
    for split, rows in {"validation": splits.validation, name: part}.items():
        probabilities = log_probabilities(model, items_of(task, rows).features, classes)
        results = results_of(task, rows, classes, probabilities)
        found[split] = write_results(results, directory, split, resamples=1000, step=0)
    constant = np.tile(base_rates(train.labels, classes), (len(items_of(task, part).labels), 1))
    found["majority"] = write_results(
        results_of(task, part, classes, constant), directory, f"{name}.majority", resamples=1000, step=0
    )
    for each in found.values():
        show(each, Console())
    return found


def base_rates(labels: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """The logarithm of each class's share of the labels, [C]; the most frequent class has the highest."""
    count = Counter(labels)
    share_C = np.array([count[name] for name in classes]) / len(labels)
    if np.count_nonzero(share_C == share_C.max()) > 1:
        share_C[share_C.argmax()] *= 1 + 1e-6  # of equally frequent classes, always predict the same one
    return np.log(np.maximum(share_C, _IMPOSSIBLE)).astype(np.float32)


def check_directory(config: FinetuneConfig, directory: WorkDirectory) -> None:
    """Checks that results can be written here without overwriting others.

    Raises:
      UserError: if not.
    """
    if directory.config.exists():
        raise UserError(f"{directory.path} holds a run, whose predictions would be lost: use another --workdir")
    directory.check(config)


def items_of(task: TaskConfig, rows: Sequence[Row]) -> Items:
    """The items of rows."""
    if task.name == "classification":
        texts = [f"{row['text']}\n{row['pair']}" if task.pair else row["text"] for row in rows]
        return Items(texts, [row["label"] for row in rows])
    features = [word_features(row["words"], place) for row in rows for place in range(len(row["words"]))]
    return Items(features, [tag for row in rows for tag in row["tags"]])


def word_features(words: Sequence[str], place: int) -> dict[str, str | bool]:
    """Features of a word: itself, its neighbours, its case and its first and last letters."""
    word = words[place]
    near = {
        f"word{offset:+d}": words[place + offset].lower()
        for offset in (-2, -1, 0, 1, 2)
        if 0 <= place + offset < len(words)
    }
    ends = {"start": word[:3].lower(), "end": word[-3:].lower()}
    return {**near, **ends, "title": word.istitle(), "upper": word.isupper(), "digit": any(map(str.isdigit, word))}


def best_regression(
    task: TaskConfig, train: Items, validation: Items, progress: Callable[[int], None] = lambda number: None
) -> Pipeline:
    """The regression with the regularization that has the best validation accuracy.

    Args:
      task: the task.
      train: items to fit to.
      validation: items to choose by.
      progress: called with the number of each regression, from 1.

    Raises:
      UserError: if the training items have no words, or a single class.
    """
    best, best_accuracy = None, -1.0
    for number, strength in enumerate(_STRENGTHS, start=1):
        progress(number)
        if task.name == "classification":
            vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
        else:
            vectorizer = DictVectorizer()
        model = make_pipeline(vectorizer, LogisticRegression(C=strength, max_iter=300))
        try:
            model.fit(train.features, train.labels)
        except ValueError as error:
            raise UserError(f"config.data.train: a regression cannot be fitted to these rows ({error})") from error
        accuracy = model.score(validation.features, validation.labels)
        if accuracy > best_accuracy:
            best, best_accuracy = model, accuracy
    return best


def log_probabilities(model: Pipeline, features: list[Any], classes: Sequence[str]) -> np.ndarray:
    """Log-probabilities in the order of `classes`, [N, C]."""
    found = model.predict_proba(features)
    ordered = np.full((len(features), len(classes)), _IMPOSSIBLE)
    for column, name in enumerate(model.classes_):
        if name in classes:
            ordered[:, classes.index(name)] = np.maximum(found[:, column], _IMPOSSIBLE)
    return np.log(ordered).astype(np.float32)


def results_of(task: TaskConfig, rows: Sequence[Row], classes: tuple[str, ...], logits_NC: np.ndarray) -> Results:
    """The task's results for these logits of all items."""
    if task.name == "classification":
        return classification_results(rows, logits_NC, classes)
    lengths = [len(row["words"]) for row in rows]
    return tagging_results(rows, np.split(logits_NC, np.cumsum(lengths)[:-1]), classes)


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
