"""Where a published model's files are: here, or on the Hugging Face Hub."""

import os
import re
from pathlib import Path
from typing import Any

from lm.errors import UserError

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


def resolve(source: str) -> Path:
    """The local directory or GGUF file of a model, downloaded if need be.

    Args:
      source: `hf:DIR` or `gguf:FILE`; `hf:owner/name`, perhaps with `@revision`, or `gguf:owner/name/FILE.gguf` of the
        Hub; or the path of a directory or file.

    Raises:
      UserError: if there is none, or it cannot be downloaded.
    """
    kind, colon, place = source.partition(":")
    if not colon or kind not in ("hf", "gguf"):
        return _existing(source)
    path = Path(os.path.expanduser(place))
    if place and (path.is_dir() if kind == "hf" else path.is_file()):
        return path
    match = (_REPOSITORY if kind == "hf" else _REPOSITORY_FILE).fullmatch(place)
    if path.exists() or not match:
        raise UserError(f"{source}: there is no {'directory' if kind == 'hf' else 'file'} {place!r}")
    return _downloaded(source, match)


def _existing(source: str) -> Path:
    path = Path(os.path.expanduser(source))
    if not path.exists():
        raise UserError(f"{source}: there is no such directory or file; for the Hugging Face Hub, write hf:owner/name")
    return path


def _downloaded(source: str, match: re.Match[str]) -> Path:
    """The directory or file that the Hub's library keeps in its cache."""
    found = match.groupdict()
    by_hand = f"hf download {found['name']} --local-dir DIR"
    hub = _hub(source, by_hand)
    try:
        if "file" in found:
            return Path(hub.hf_hub_download(found["name"], found["file"]))
        return Path(hub.snapshot_download(found["name"], revision=found["revision"], allow_patterns=list(_FILES)))
    # Errors of the network come from the library that it uses, which has changed between versions.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{source} is not here and cannot be downloaded ({reason}); where there is a network, run {by_hand}, "
            "and give hf:DIR"
        ) from error


def _hub(source: str, by_hand: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{source} is not here; to download it, pip install 'calibrated-lm[pretrained]', or run {by_hand} "
            "and give hf:DIR"
        ) from error
    return huggingface_hub
