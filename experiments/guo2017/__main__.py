"""Reproduces the text rows of Table 1 of Guo et al. 2017, On Calibration of Modern Neural Networks.

python -m experiments.guo2017 --config=configs/guo2017.py --workdir=runs/guo2017

Trains a deep averaging network per data set and seed, saves its predictions on the held-out calibration texts and on
the test texts (predictions/SET_seedK_fit.npz and _test.npz), fits each calibrator to the former, measures it on the
latter, and prints and saves the table (table.md, table.csv, table.json). Running the same command again reuses the
predictions that exist. With --choose_epochs it only prints the best value of `epochs`.

As in the paper: 20 Newsgroups and Reuters in splits of the same sizes (9,034 texts for training, 2,259 for calibration,
7,528 for testing; 4,388, 1,097, 2,189), a deep averaging network of three layers with batch normalization, the
calibrators, and ECE with 15 equal-width bins. What differs, or is unknown:

- Their word vectors were probably pretrained (GloVe), as the network's authors suggest; ours are initialized randomly.
- Which training texts they held out is unknown; we hold out as many, drawn anew for each seed.
- Their number of epochs and their optimizer are unknown. We use the number of epochs with the best accuracy, averaged
  over seeds, on a tenth of the training texts that only --choose_epochs holds out.
- On SST they trained TreeLSTMs with a label for every phrase. We train the averaging network as its authors describe
  it, without batch normalization, on whole sentences, in the same splits.
- Which kind of histogram binning they used is unknown; we show both.
- They report one run; we report the mean over several seeds with its standard error.

Axes: N texts, C classes, K seeds, E epochs.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import optax
from absl import flags

from experiments.guo2017.network import DeepAveragingNetwork
from experiments.guo2017.table import RowConfig, as_csv, as_markdown, make_row
from experiments.guo2017.texts import LabelledTexts, Lexicon, Words, encode, frequent, read_text_set
from experiments.guo2017.training import predict, train_epochs
from lm.calibration.predictions import Predictions
from lm.command_line import define_config_file, run
from lm.configuration import differences
from lm.console import Console
from lm.errors import UserError
from lm.files import read_json, write_atomically, write_json


@dataclasses.dataclass(frozen=True)
class Guo2017Config:
    """The experiment.

    Attributes:
      newsgroups: the row of 20 Newsgroups.
      reuters: the row of Reuters R8.
      sst_binary: the row of SST with two classes.
      sst_fine: the row of SST with five classes.
      data_sets: the rows to compute.
      seeds: number of networks per row, with seeds from 0.
      vocabulary: number of words with an embedding, the most frequent in the training texts.
      least_count: minimum count of a word in the training texts.
      longest_text: maximum number of words per text; the rest is cut off.
      width: of an embedding.
      hidden_width: of a hidden layer.
      layers: hidden layers between the average and the classifier.
      word_dropout: share of words dropped in training.
      batch_size: texts per step.
      learning_rate: of AdamW, constant.
      weight_decay: of AdamW.
      most_epochs: largest number of epochs that --choose_epochs tries.
      cache_dir: folder for downloads. None: `$LM_CACHE_DIR`, else `~/.cache/calibrated_lm`.
    """

    newsgroups: RowConfig
    reuters: RowConfig
    sst_binary: RowConfig
    sst_fine: RowConfig
    data_sets: tuple[str, ...] = ("newsgroups", "reuters", "sst_binary", "sst_fine")
    seeds: int = 5
    vocabulary: int = 20_000
    least_count: int = 2
    longest_text: int = 256
    width: int = 100
    hidden_width: int = 300
    layers: int = 3
    word_dropout: float = 0.3
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    most_epochs: int = 20
    cache_dir: str | None = None

    def __post_init__(self):
        rows = [field.name for field in dataclasses.fields(self) if field.type is RowConfig]
        for name in self.data_sets:
            if name not in rows:
                raise UserError(f"config.data_sets names {name!r}; known: {', '.join(rows)}")
        whole = [field.name for field in dataclasses.fields(self) if field.type is int]
        for name in whole:
            if getattr(self, name) < 1:
                raise UserError(f"config.{name} must be at least 1, got {getattr(self, name)}")
        if self.learning_rate <= 0 or self.weight_decay < 0 or not 0 <= self.word_dropout < 1:
            raise UserError(
                "config.learning_rate must be positive, config.weight_decay not negative, config.word_dropout in [0, 1)"
            )

    def row(self, name: str) -> RowConfig:
        """The row of a data set."""
        return getattr(self, name)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config_file(values, Guo2017Config)
    flags.DEFINE_string("workdir", None, "Directory for the predictions and the table.", flag_values=values)
    flags.DEFINE_bool("choose_epochs", False, "Only print the best number of epochs.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Runs the experiment."""
    config = values.config
    console = Console(stderr=True)
    if values.choose_epochs:
        for name in config.data_sets:
            console.print(describe_epochs(name, accuracy_by_epoch(config, name)))
        return
    if not values.workdir:
        raise UserError("--workdir is missing: name a directory for the results, such as --workdir=runs/guo2017")
    directory = Path(values.workdir).expanduser()
    check(directory, config)
    files = {name: prediction_files(config, name, directory / "predictions") for name in config.data_sets}
    # Read all data first, so that missing files are reported before minutes of training.
    sources = {name: Parts(config, name) for name, pairs in files.items() if seeds_missing(pairs)}
    claim(directory, config)
    for name, source in sources.items():
        write_predictions(config, source, files[name], console)
    rows = []
    for name, pairs in files.items():
        with console.status(f"calibrating {name}"):
            rows.append(make_row(name, config.row(name), pairs))
    write_json(directory / "table.json", [dataclasses.asdict(row) for row in rows])
    write_atomically(directory / "table.csv", as_csv(rows))
    write_atomically(directory / "table.md", text := as_markdown(rows))
    print(text, end="")


# What may differ between runs that share predictions.
_FREE_TO_CHANGE = (
    "data_sets",
    "seeds",
    "most_epochs",
    "cache_dir",
    "title",
    "network",
    "published_ece",
    "published_error",
)


def check(directory: Path, config: Guo2017Config) -> None:
    """Raises a UserError if the directory holds predictions made with another config."""
    file = directory / "config.json"
    if not file.exists():
        return
    known = read_json(file)
    for name, (old, new) in differences(known, config).items():
        if name.rpartition(".")[2] not in _FREE_TO_CHANGE:
            raise UserError(f"{directory} was made with config.{name}={old!r}, not {new!r}: use another --workdir")


def claim(directory: Path, config: Guo2017Config) -> None:
    """Creates the directory and saves the config; raises a UserError if it cannot be written."""
    try:
        (directory / "predictions").mkdir(parents=True, exist_ok=True)
        write_json(directory / "config.json", dataclasses.asdict(config))
    except OSError as error:
        raise UserError(f"--workdir={directory} cannot be written: {error.strerror}") from error


class Parts:
    """A data set with its words numbered once, from which every seed draws its own parts."""

    def __init__(self, config: Guo2017Config, name: str):
        """Raises a UserError as `read_text_set` does, or if `fit_items` does not fit the data set."""
        self.name, self._config, self._held_out = name, config, config.row(name).fit_items
        self.texts = read_text_set(name, config.cache_dir)
        if not self._held_out < len(self.texts.train.texts):
            raise UserError(
                f"config.{name}.fit_items must be below {len(self.texts.train.texts)}, the number of training texts"
            )
        if not self._held_out and self.texts.validation is None:
            raise UserError(f"config.{name}.fit_items must be at least 1: {name} has no validation part")
        self._lexicon = Lexicon()
        named = {"train": self.texts.train, "fit": self.texts.validation, "test": self.texts.test}
        self._documents = {part: self._lexicon.read(found.texts) for part, found in named.items() if found}

    def of(self, seed: int) -> dict[str, tuple[Words, LabelledTexts]]:
        """The parts "train", "fit" and "test", with the vocabulary of the first."""
        texts, documents = self.texts.train, self._documents
        order_N = np.random.default_rng(seed).permutation(len(texts.texts))
        fit_N, train_N = np.split(order_N, [self._held_out])
        parts = {
            part: (texts.take(rows), [documents["train"][i] for i in rows])
            for part, rows in (("train", train_N), ("fit", fit_N))
        }
        if not self._held_out:
            parts["fit"] = (self.texts.validation, documents["fit"])
        parts["test"] = (self.texts.test, documents["test"])
        config = self._config
        new_ids = frequent(parts["train"][1], len(self._lexicon), config.vocabulary, config.least_count)
        return {
            part: (encode(found, new_ids, config.longest_text), labelled) for part, (labelled, found) in parts.items()
        }


def train(
    config: Guo2017Config, name: str, classes: int, words: Words, labels_N: np.ndarray, seed: int
) -> Iterator[tuple[Callable[[Words], np.ndarray], float]]:
    """Trains a network of a row; yields its function from texts to logits and the training loss after each epoch."""
    # The table has `vocabulary` entries even if fewer words occur, so that all seeds share one compilation.
    model = DeepAveragingNetwork(
        config.vocabulary,
        classes,
        config.width,
        config.hidden_width,
        config.layers,
        config.word_dropout,
        config.row(name).batch_norm,
    )
    optimizer = make_optimizer(config.learning_rate, config.weight_decay)
    for variables, loss in train_epochs(model, optimizer, words, labels_N, batch_size=config.batch_size, seed=seed):
        yield lambda words, variables=variables: np.asarray(predict(model, variables, words)), loss


@functools.cache
def make_optimizer(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """AdamW; the same object for the same arguments."""
    return optax.adamw(learning_rate, weight_decay=weight_decay)


def prediction_files(config: Guo2017Config, name: str, directory: Path) -> list[tuple[Path, Path]]:
    """Paths of each seed's predictions: to fit on, and to test on."""
    stems = [f"{name}_seed{seed}" for seed in range(config.seeds)]
    return [(directory / f"{stem}_fit.npz", directory / f"{stem}_test.npz") for stem in stems]


def seeds_missing(files: list[tuple[Path, Path]]) -> list[int]:
    """The seeds without predictions."""
    return [seed for seed, pair in enumerate(files) if not all(file.exists() for file in pair)]


def write_predictions(config: Guo2017Config, source: Parts, files: list[tuple[Path, Path]], console: Console) -> None:
    """Trains the networks of a row that have no predictions yet, and saves their predictions."""
    for seed in seeds_missing(files):
        start, parts, names = time.monotonic(), source.of(seed), source.texts.class_names
        words, labelled = parts["train"]
        training = train(config, source.name, len(names), words, labelled.labels_N, seed)
        network, loss = next(itertools.islice(training, config.row(source.name).epochs - 1, None))
        for part, file in zip(("fit", "test"), files[seed], strict=True):
            words, labelled = parts[part]
            logits_NC = network(words)
            Predictions(logits_NC, labelled.labels_N, np.array(labelled.ids), class_names=names).save(file)
        said = f"training loss {loss:.3f}, test accuracy {accuracy(logits_NC, labelled.labels_N):.2%}"
        console.print(f"{source.name}, seed {seed}: {said}, {time.monotonic() - start:.0f} s")


def accuracy(logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """The share of texts whose label has the highest logit."""
    return float((logits_NC.argmax(axis=1) == labels_N).mean())


def accuracy_by_epoch(config: Guo2017Config, name: str) -> np.ndarray:
    """Accuracy after each epoch on a held-out tenth of the training texts, [K, E]."""
    source = Parts(config, name)
    accuracy_KE = np.zeros((config.seeds, config.most_epochs))
    for seed in range(config.seeds):
        words, labelled = source.of(seed)["train"]
        labels_N = labelled.labels_N
        asked_N, learned_N = np.split(np.arange(len(labels_N)), [max(1, len(labels_N) // 10)])
        classes = len(source.texts.class_names)
        training = train(config, name, classes, words.take(learned_N), labels_N[learned_N], seed)
        for epoch, (network, _) in enumerate(itertools.islice(training, config.most_epochs)):
            accuracy_KE[seed, epoch] = accuracy(network(words.take(asked_N)), labels_N[asked_N])
    return accuracy_KE


def describe_epochs(name: str, accuracy_KE: np.ndarray) -> str:
    """The mean over seeds after each epoch, and the best epoch."""
    mean_E = accuracy_KE.mean(axis=0)
    listed = " ".join(f"{100 * mean:.2f}" for mean in mean_E)
    return f"{name}: accuracy after 1, 2, ... epochs {listed} %; best after {mean_E.argmax() + 1}"


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
