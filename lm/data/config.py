"""What to read and how to tokenize it: the `data` and `tokenizer` parts of an experiment's config."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from lm.configuration import check_seed
from lm.data.cleaning import STREAM_STEPS, check_steps
from lm.data.segmentation import SEGMENTERS
from lm.errors import UserError

DOCUMENT_SEPARATORS = ("file", "blank_line")
TOKENIZER_KINDS = ("bytes", "characters", "bpe", "wordpiece", "unigram", "words", "file")

# A byte-level vocabulary cannot be smaller than its alphabet and the end-of-text token.
_SMALLEST_VOCABULARY = {"bpe": 257, "unigram": 257, "wordpiece": 3, "words": 3}


Split = Literal["train", "validation"]


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from, how it is split and cleaned, and where the token store is cached.

    Attributes:
      source: `python:stdlib`, `text:GLOB`, `jsonl:GLOB`, `parquet:GLOB` or `tfds:NAME[/CONFIG]` (see
        `lm.data.sources`). Or `shards:DIR`, local or gs://, from `experiments.tokenize_corpus`, or a mixture of sources
        such as `mixture:0.7=shards:web,0.3=shards:code`, of which the first gives tokenizer and validation split.
      validation_source: another source, all of it for validation; then all of `source` is for training. None holds out
        a part of `source`: the set's own split for tfds, else `validation_fraction` of the documents.
      mixed_source: another source, for training only: `mixed_share` of the windows in every batch come from it. Its
        documents are read like those of `source`.
      mixed_share: the share of windows from `mixed_source`, in [0, 1); rounded to whole windows of a batch.
      train_split: split expression of a tfds set for training, such as `train` or `train[:90%]`.
      validation_split: split expression of a tfds set for validation, such as `validation+test`.
      validation_fraction: expected fraction of the documents, in [0, 1], held out of a source that has no splits.
      field: field that holds the text, for jsonl, parquet and tfds.
      document_separator: for `text:`, `file` (one document per file) or `blank_line`.
      cleaning: names of `lm.data.cleaning.STEPS`, applied in this order. None by default.
      random_offsets: shift every training window by a random offset, redrawn each epoch, so that window borders vary.
      cache_dir: folder of the token store. None: `$LM_CACHE_DIR`, else `~/.cache/calibrated_lm`.
    """

    source: str = "python:stdlib"
    validation_source: str | None = None
    mixed_source: str | None = None
    mixed_share: float = 0.0
    train_split: str = "train"
    validation_split: str = "validation"
    validation_fraction: float = 0.05
    field: str = "text"
    document_separator: str = "file"
    cleaning: tuple[str, ...] = ()
    random_offsets: bool = False
    cache_dir: str | None = None

    def __post_init__(self):
        if not 0 <= self.validation_fraction <= 1:
            raise UserError(f"config.data.validation_fraction must be between 0 and 1, got {self.validation_fraction}")
        if not 0 <= self.mixed_share < 1:
            raise UserError(f"config.data.mixed_share must be in [0, 1), got {self.mixed_share}")
        if (self.mixed_source is None) != (self.mixed_share == 0):
            raise UserError("config.data.mixed_source and config.data.mixed_share go together: set both or neither")
        if self.mixed_source is not None and self.mixed_source.startswith(("shards:", "mixture:")):
            raise UserError(
                f"config.data.mixed_source={self.mixed_source}: mix shards with config.data.source=mixture:... instead"
            )
        _check_choice("config.data.document_separator", self.document_separator, DOCUMENT_SEPARATORS)
        for name in ("source", "train_split", "validation_split", "field"):
            if not getattr(self, name):
                raise UserError(f"config.data.{name} must not be empty")
        _check_tuple("config.data.cleaning", self.cleaning)
        check_steps(self.cleaning)


@dataclass(frozen=True)
class ExamplesConfig:
    """Which rows to train, validate and test on, for tasks with examples.

    Attributes:
      train: `jsonl:FILE`, `csv:FILE`, `conll:FILE`, `parquet:FILE`, `squad:FILE` or `tfds:NAME[/CONFIG]:SPLIT` (see
        `lm.data.row_files`).
      validation: another source. Empty: held out of `train`.
      test: another source. Empty: none.
      columns: what the files call the task's columns, as in "text=sentence". Columns not listed have the same name in
        both. Columns of conll: files are numbers from 1, as in "tags=4"; by default words come first and tags last.
      delimiter: for csv: files, the character between values; "tab" is one too. Empty: a comma, or a tab in .tsv files,
        or what the header shows instead.
      quoting: for csv: files, whether quotation marks enclose values ("standard") or are part of them ("none"). Empty:
        they enclose values, or in tab-separated files do what the whole file shows.
      header: for csv: files without a header, the names of all their columns.
      cleaning: names of `lm.data.cleaning.STEPS`, applied to texts in this order.
      validation_fraction: the share of `train` to hold out if `validation` is empty, stratified by label. Rows are
        chosen by a hash of their texts, so their order does not matter and equal texts stay together. 0: hold out
        nothing.
      folds: number of parts of `train` for cross-validation, stratified by label; 0: no cross-validation.
      fold: index of the part used for validation, from 0; the others are for training.
      train_rows: how many training rows to use, drawn at random, for learning curves: a smaller number draws a subset
        of what a larger one draws. 0: all.
      split_seed: for the folds and the choice of `train_rows`.
    """

    train: str = ""
    validation: str = ""
    test: str = ""
    columns: tuple[str, ...] = ()
    delimiter: str = ""
    quoting: str = ""
    header: tuple[str, ...] = ()
    cleaning: tuple[str, ...] = ()
    validation_fraction: float = 0.1
    folds: int = 0
    fold: int = 0
    train_rows: int = 0
    split_seed: int = 0

    def __post_init__(self):
        if not 0 <= self.validation_fraction < 1:
            raise UserError(f"config.data.validation_fraction must be in [0, 1), got {self.validation_fraction}")
        if self.train_rows < 0:
            raise UserError(f"config.data.train_rows must not be negative, got {self.train_rows}")
        check_seed("config.data.split_seed", self.split_seed)
        self._check_folds()
        _check_tuple("config.data.cleaning", self.cleaning)
        check_steps(self.cleaning)
        for name in set(self.cleaning) & set(STREAM_STEPS):
            raise UserError(f"config.data.cleaning: {name} works on documents, not rows: leave it out")
        self._check_columns()
        self._check_dialect()

    @property
    def column_names(self) -> dict[str, str]:
        """The names in the files by the task's names, for the columns that `columns` lists."""
        return dict(pair.split("=", 1) for pair in self.columns)

    def of_other_file(
        self, columns: tuple[str, ...], delimiter: str, quoting: str, header: tuple[str, ...] | None
    ) -> "ExamplesConfig":
        """The config for a file that differs in what is given; what is empty, or None, stays."""
        return replace(
            self,
            columns=columns or self.columns,
            delimiter=delimiter or self.delimiter,
            quoting=quoting or self.quoting,
            header=self.header if header is None else header,
        )

    def _check_folds(self):
        if self.folds < 0 or self.folds == 1:
            raise UserError(f"config.data.folds must be 0 or at least 2, got {self.folds}")
        if not 0 <= self.fold < max(self.folds, 1):
            raise UserError(f"config.data.fold must be in [0, config.data.folds={self.folds}), got {self.fold}")
        if self.folds and self.validation:
            raise UserError(
                "config.data.folds takes the validation rows out of config.data.train: leave config.data.validation "
                "empty, or set config.data.folds=0"
            )

    def _check_dialect(self):
        delimiter = "\t" if self.delimiter == "tab" else self.delimiter
        if len(delimiter) > 1 or delimiter in ('"', "\r", "\n"):
            raise UserError(f"config.data.delimiter must be one character or 'tab', got {self.delimiter!r}")
        _check_choice("config.data.quoting", self.quoting, ("", "standard", "none"))
        _check_tuple("config.data.header", self.header)
        if len(set(self.header)) < len(self.header) or not all(self.header):
            raise UserError(f"config.data.header must name each column once, got {self.header}")

    def _check_columns(self):
        _check_tuple("config.data.columns", self.columns)
        for pair in self.columns:
            name, equals, column = pair.partition("=")
            if not (name and equals and column):
                raise UserError(f"config.data.columns must be pairs such as 'text=sentence', got {pair!r}")
        names = [pair.partition("=")[0] for pair in self.columns]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"config.data.columns names {name!r} twice: leave one out")


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer to train or to read.

    Attributes:
      kind: `bytes` (256 tokens), `characters` (the corpus's own), `bpe` (byte-level, lossless), `wordpiece` (BERT's
        splitting, lossy in white space), `unigram` (byte-level, lossless), `words` (the most frequent words and
        punctuation marks; others are unknown), or `file`.
      vocab_size: size of the vocabulary of the trained kinds (bpe, wordpiece, unigram, words), special tokens included.
        A small corpus may give a smaller one.
      lowercase: for wordpiece and words: convert text to lower case. Accents stay.
      split_punctuation: for wordpiece and words: split punctuation from words, as BERT does. Otherwise text is split at
        white space only, for text that is already tokenized into words.
      segmentation: for words: "jieba" takes Chinese words into the vocabulary; text is then split into its likeliest
        words, and characters where these are unknown. It needs the extra `chinese`, for training only. Empty: Chinese
        characters are words, if `split_punctuation`; other text without spaces stays whole.
      path: for kind `file`, any `tokenizer.json` of the tokenizers library. If `tokenizer_config.json` lies beside,
        the special tokens are those that it names, as in Hugging Face's directories.
      end_of_text: put a special token between documents. With kind `file`, one that the file already has, if any.
    """

    kind: str = "bpe"
    vocab_size: int = 8192
    lowercase: bool = False
    split_punctuation: bool = True
    segmentation: str = ""
    path: str | None = None
    end_of_text: bool = True

    def __post_init__(self):
        _check_choice("config.tokenizer.kind", self.kind, TOKENIZER_KINDS)
        smallest = _SMALLEST_VOCABULARY.get(self.kind, 1)
        if self.vocab_size < smallest:
            raise UserError(
                f"config.tokenizer.vocab_size must be at least {smallest} for kind {self.kind}, got {self.vocab_size}"
            )
        if self.kind == "file" and not self.path:
            raise UserError("config.tokenizer.path must name a tokenizer.json when config.tokenizer.kind is file")
        if self.kind not in ("wordpiece", "words") and (self.lowercase or not self.split_punctuation):
            name = "lowercase" if self.lowercase else "split_punctuation"
            raise UserError(f"config.tokenizer.{name} is for the kinds wordpiece and words, not {self.kind}")
        _check_choice("config.tokenizer.segmentation", self.segmentation, SEGMENTERS)
        if self.segmentation and self.kind != "words":
            raise UserError(f"config.tokenizer.segmentation is for the kind words, not {self.kind}")


# What belongs to a source: by the config's key, the keys whose values were chosen for it.
_CHOSEN_FOR = {"train": ("validation", "test"), "source": ("validation_source", "mixed_source")}


def check_overridden_sources(
    data: DataConfig | ExamplesConfig, overridden: Collection[str], where: str = "on the command line"
):
    """Checks that sources of other splits are not left over from a config file whose training source was overridden.

    Args:
      data: the config, overrides included.
      overridden: the config keys that are set, such as "data.train"; to their old values, too.
      where: they are set, for messages.

    Raises:
      UserError: if a source of the file would be used beside another training source.
    """
    for key, others in _CHOSEN_FOR.items():
        for other in others if f"data.{key}" in overridden else ():
            left = getattr(data, other, None)
            if left and f"data.{other}" not in overridden:
                raise UserError(
                    f"config.data.{key} is set {where}, but config.data.{other}={left} is the config "
                    f"file's: set it too; {_WITHOUT[other]}"
                )


_WITHOUT = {
    "validation": "'' holds out a part of config.data.train",
    "test": "'' means none",
    "validation_source": "None holds out a part of config.data.source",
    "mixed_source": "None, with config.data.mixed_share=0, means none",
}


def _check_tuple(name: str, values: tuple[str, ...]):
    if isinstance(values, str):
        raise UserError(f"{name} must be a tuple of names, got {values!r}: add a trailing comma")


def _check_choice(name: str, value: str, choices: tuple[str, ...]):
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
