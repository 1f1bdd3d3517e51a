"""Windows of documents, and the last hidden states of a decoder at their tokens, which are computed once.

Axes: N predicted tokens, B windows of a batch, T positions in a window, D model width.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.console import QUIET, Console
from lm.data.config import DataConfig
from lm.data.sources import Source
from lm.errors import UserError
from lm.files import read_json, write_json, written_atomically
from lm.inference.language_models import LanguageModel
from lm.inference.predictions import last_hidden
from lm.types import HostBatch

_DOCUMENTS_AT_ONCE = 16  # in one file
_WINDOWS_AT_ONCE = 8  # in one forward pass


@dataclasses.dataclass(frozen=True)
class WindowConfig:
    """Which tokens of a document are predicted.

    Attributes:
      length: tokens that the model reads at a time.
      context: tokens before the first one that is predicted, in the window.
      each: number of windows per document, drawn from its consecutive windows; a document that is shorter than a window
        has one, its beginning.
    """

    length: int = 256
    context: int = 128
    each: int = 1

    def __post_init__(self):
        if not 0 < self.context < self.length or self.each < 1:
            raise UserError(
                "config.windows: context must be from 1 to below length, and each at least 1; got "
                f"length={self.length}, context={self.context}, each={self.each}"
            )


@dataclasses.dataclass(frozen=True)
class TokenStates:
    """What a model predicts tokens from.

    Attributes:
      hidden_ND: the last hidden state before each token.
      labels_N: the tokens.
      documents_N: the number of each token's document.
    """

    hidden_ND: np.ndarray
    labels_N: np.ndarray
    documents_N: np.ndarray


def read_documents(config: DataConfig, count: int, seed: int) -> list[str]:
    """Documents of the validation split, in random order: `count` of them, or all if it is 0 or there are fewer.

    Raises:
      UserError: if the source cannot be read, or has none.
    """
    documents = list(dict.fromkeys(Source(config).documents("validation")))  # equal ones would be on both sides
    order = np.random.default_rng(seed).permutation(len(documents))[: count or None]
    return [documents[place] for place in order]


def encode_documents(model: LanguageModel, documents: Sequence[str], windows: WindowConfig) -> list[np.ndarray]:
    """The token ids of each document as the model reads it; documents without a token to predict are left out.

    Raises:
      UserError: if windows are too long for the model.
    """
    limit = model.config.model.size_of_sequence
    if windows.length > limit:
        raise UserError(f"config.windows.length={windows.length} is more than the {limit} tokens that the model reads")
    encoded = [
        np.array(model.tokenizer.with_start(ids), np.int32) for ids in model.tokenizer.encode_batch(list(documents))
    ]
    return [ids for ids in encoded if len(ids) > windows.context]


def window_starts(tokens: int, windows: WindowConfig, rng: np.random.Generator) -> np.ndarray:
    """Where the windows of a document of so many tokens begin, in order."""
    whole = max((tokens - 1) // windows.length, 1)
    return np.sort(rng.permutation(whole)[: windows.each]) * windows.length


def token_states(
    model: LanguageModel,
    documents: Sequence[np.ndarray],
    windows: WindowConfig,
    seed: int,
    folder: Path,
    console: Console = QUIET,
) -> TokenStates:
    """The hidden states of all documents, those that `folder` holds already not computed again.

    Args:
      model: a decoder.
      documents: token ids, from `encode_documents`.
      windows: of a document.
      seed: for drawing them.
      folder: for files of a few documents each.
      console: for progress.

    Raises:
      UserError: if the folder holds those of another model, of other documents or other windows.
    """
    digest = hashlib.blake2b(np.concatenate(documents).tobytes(), digest_size=16).hexdigest()
    _claim(folder, {"model": model.digest, "documents": digest, "windows": dataclasses.asdict(windows), "seed": seed})
    parts = []
    with console.progress("reading documents", len(documents)) as advance:
        for first in range(0, len(documents), _DOCUMENTS_AT_ONCE):
            path, part = folder / f"{first:06d}.npz", documents[first : first + _DOCUMENTS_AT_ONCE]
            if not path.exists():
                with written_atomically(path) as temporary:
                    np.savez(temporary, **dataclasses.asdict(_states(model, part, first, windows, seed)))
            with np.load(path, allow_pickle=False) as arrays:
                parts.append(TokenStates(**arrays))
            advance(len(part))
    return TokenStates(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(TokenStates))
    )


def _claim(folder: Path, made_of: Mapping[str, Any]) -> None:
    """Says in the folder what its files are made of, or checks that they are made of the same."""
    file = folder / "made_of.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, made_of)
    elif changed := [name for name, value in made_of.items() if read_json(file).get(name) != value]:
        raise UserError(f"{folder} holds hidden states of other {', '.join(changed)}: use another --workdir")


def _states(
    model: LanguageModel, documents: Sequence[np.ndarray], first: int, windows: WindowConfig, seed: int
) -> TokenStates:
    """Those of documents that are numbered from `first`."""
    numbers, starts = [], []
    for number, ids in enumerate(documents, start=first):
        of_document = window_starts(len(ids), windows, np.random.default_rng((seed, number)))
        starts += of_document.tolist()
        numbers += [number] * len(of_document)
    hidden, labels, documents_N = [], [], []
    for place in range(0, len(starts), _WINDOWS_AT_ONCE):
        some = slice(place, place + _WINDOWS_AT_ONCE)
        batch = _batch([documents[number - first] for number in numbers[some]], starts[some], windows)
        counted_BT = batch.pop("counted")
        hidden_BTD = np.asarray(last_hidden(model.model, model.params, batch), np.float32)
        hidden.append(hidden_BTD[counted_BT])
        labels.append(batch["targets"][counted_BT])
        documents_N.append(np.repeat(numbers[some], counted_BT[: len(numbers[some])].sum(axis=1)))
    return TokenStates(*map(np.concatenate, (hidden, labels, documents_N)))


def _batch(documents: Sequence[np.ndarray], starts: Sequence[int], windows: WindowConfig) -> HostBatch:
    """Windows as a batch with a fixed number of rows; `counted` is where a target is predicted."""
    shape = (_WINDOWS_AT_ONCE, windows.length)
    batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segments")}
    batch["positions"] = np.broadcast_to(np.arange(windows.length, dtype=np.int32), shape)
    batch["counted"] = np.zeros(shape, bool)
    for row, (ids, start) in enumerate(zip(documents, starts, strict=True)):
        seen = ids[start : start + windows.length + 1]
        length = len(seen) - 1
        batch["tokens"][row, :length], batch["targets"][row, :length] = seen[:-1], seen[1:]
        batch["segments"][row, :length] = 1
        batch["counted"][row, windows.context - 1 : length] = True
    return batch
