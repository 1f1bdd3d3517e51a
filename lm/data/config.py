"""What to read and how to tokenize it: the `data` and `tokenizer` parts of an experiment's config."""

from dataclasses import dataclass

from lm.data.cleaning import check_steps
from lm.errors import UserError

DOCUMENT_SEPARATORS = ("file", "blank_line")
TOKENIZER_KINDS = ("bytes", "characters", "bpe", "wordpiece", "unigram", "file")

# A byte-level vocabulary cannot be smaller than its alphabet and the end-of-text token.
_SMALLEST_VOCABULARY = {"bpe": 257, "unigram": 257, "wordpiece": 3}


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from, how it is split and cleaned, and where the token store is cached.

    Attributes:
      source: `python:stdlib`, `text:GLOB`, `jsonl:GLOB` or `tfds:NAME[/CONFIG]` (see `lm.data.sources`).
      validation_source: another source, used whole for validation; `source` is then used whole for training. None
        holds out a part of `source`: the set's own split for tfds, else `validation_fraction` of the documents.
      train_split: split expression of a tfds set for training, such as `train` or `train[:90%]`.
      validation_split: split expression of a tfds set for validation, such as `validation+test`.
      validation_fraction: expected fraction of the documents, in [0, 1], held out of a source that has no splits.
      field: field that holds the text, for jsonl and tfds.
      document_separator: for `text:`, `file` (one document a file) or `blank_line`.
      cleaning: names of `lm.data.cleaning.STEPS`, applied in this order. None by default.
      random_offsets: shift every training window by a random offset, new each epoch, so that window borders vary.
      cache_dir: folder of the token store. None: `$LM_CACHE_DIR`, else `~/.cache/calibrated_lm`.
    """

    source: str = "python:stdlib"
    validation_source: str | None = None
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
        _check_choice("config.data.document_separator", self.document_separator, DOCUMENT_SEPARATORS)
        for name in ("source", "train_split", "validation_split", "field"):
            if not getattr(self, name):
                raise UserError(f"config.data.{name} must not be empty")
        if isinstance(self.cleaning, str):
            raise UserError(
                f"config.data.cleaning must be a tuple of names, got {self.cleaning!r}: write a comma after it"
            )
        check_steps(self.cleaning)


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer to make, or to read.

    Attributes:
      kind: `bytes` (256 tokens), `characters` (the corpus's own), `bpe` (byte-level, lossless), `wordpiece` (BERT's
        splitting, lossy in white space), `unigram` (byte-level, lossless), or `file`.
      vocab_size: size of the vocabulary of the trained kinds (bpe, wordpiece, unigram), special tokens included. A
        small corpus may give a smaller one.
      path: for kind `file`, any `tokenizer.json` of the tokenizers library.
      end_of_text: put a special token between documents. With kind `file` it is one that the file already has, if any.
    """

    kind: str = "bpe"
    vocab_size: int = 8192
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


def _check_choice(name: str, value: str, choices: tuple[str, ...]):
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
