"""Where a published model's files are: here, or on the Hugging Face Hub."""

import os
import re
from pathlib import Path
from typing import Any

from lm.errors import UserError

# What the name of a published model begins with.
KINDS = ("hf:", "gguf:")

# What a model needs; never code, nor files that run code when they are read.
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    # Of models that were exported here: their calibrators.
    "calibration/*.json",
    # How sentence encoders make one vector of many.
    "modules.json",
    "sentence_bert_config.json",
    "*_Pooling/config.json",
)
_PART = r"[A-Za-z0-9][\w.\-]*"
_REPOSITORY = re.compile(rf"(?P<name>(?:{_PART}/)?{_PART})(?:@(?P<revision>[\w.\-/]+))?")
_REPOSITORY_FILE = re.compile(rf"(?P<name>{_PART}/{_PART})/(?P<file>(?:{_PART}/)*{_PART}\.gguf)")


def with_kind(source: str) -> str:
    """The source with its kind in front of it: a path alone is that of a directory or of a GGUF file.

    Raises:
      UserError: if there is neither. A path alone is never looked for on the Hub.
    """
    if source.startswith(KINDS):
        return source
    path = Path(os.path.expanduser(source))
    if not path.exists():
        raise UserError(f"there is no directory or file {source!r}; for the Hugging Face Hub, write hf:owner/name")
    return f"hf:{source}" if path.is_dir() else f"gguf:{source}"


def resolve(source: str) -> Path:
    """The local directory or GGUF file of a model, downloaded if need be.

    Args:
      source: `hf:DIR` or `gguf:FILE`; or `hf:owner/name`, perhaps with `@revision`, or `gguf:owner/name/FILE.gguf` of
        the Hub.

    Raises:
      UserError: if there is none, or it cannot be downloaded.
    """
    kind, _, place = source.partition(":")
    path, is_file = Path(os.path.expanduser(place)), kind == "gguf"
    if place and (path.is_file() if is_file else path.is_dir()):
        return path
    match = (_REPOSITORY_FILE if is_file else _REPOSITORY).fullmatch(place)
    if path.exists() or not match:
        way_out = f"; for the file write gguf:{place}" if place.endswith(".gguf") and path.is_file() else ""
        raise UserError(f"{source}: there is no {'file' if is_file else 'directory'} {place!r}{way_out}")
    return _downloaded(source, match)


def _downloaded(source: str, match: re.Match[str]) -> Path:
    """The directory or file that the Hub's library keeps in its cache."""
    name, file, revision = (match.groupdict().get(key) for key in ("name", "file", "revision"))
    by_hand = f"hf download {name} {f'{file} ' if file else ''}--local-dir DIR and give {_given(file)}"
    hub = _hub(source, by_hand)
    try:
        # One file too: unlike hf_hub_download, it does not try again for half a minute where there is no network.
        folder = hub.snapshot_download(name, revision=revision, allow_patterns=[file] if file else list(_FILES))
    # Errors of the network come from the library that it uses, which has changed between versions.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{source} is not here and cannot be downloaded ({reason}); where there is a network, run {by_hand}"
        ) from error
    path = Path(folder, file or "")
    if not path.exists():
        raise UserError(f"{source}: {name} has no {file}: look at its files on the Hub")
    return path


def _given(file: str | None) -> str:
    return f"gguf:DIR/{file}" if file else "hf:DIR"


def _hub(source: str, by_hand: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{source} is not here; to download it, pip install 'calibrated-lm[pretrained]', or run {by_hand}"
        ) from error
    return huggingface_hub
