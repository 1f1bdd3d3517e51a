"""Tokenizers of Hugging Face directories, in and out.

What a directory says of its tokenizer is spread over several files. The vocabulary and the splitting are in
tokenizer.json or, in older directories, in vocab.txt, vocab.json and merges.txt, or a SentencePiece model. The special
tokens are in tokenizer_config.json, special_tokens_map.json, generation_config.json and config.json, the chat template
in one of these or in chat_template.jinja.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from lm.data.frames import Frame, frame_of
from lm.data.published_backends import set_frame
from lm.data.published_vocabularies import backend_of_vocabulary
from lm.data.special_tokens import ROLES, SpecialTokens
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError, naming
from lm.files import read_json_object, read_text

_TOKENIZER, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_MOST_BYTES = 2**28
_MOST_ENDS = 1000


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory, with its special tokens and chat template.

    Raises:
      UserError: if there is none, a file is damaged, or the kind is not known; it names the file.
    """
    config = _object(directory / _CONFIG)
    # The map only repeats the roles, and older directories have it alone.
    values = {f"{role}_token": _object(directory / "special_tokens_map.json").get(f"{role}_token") for role in ROLES}
    values |= {key: value for key, value in config.items() if value is not None}
    values |= _template(directory)
    model = _object(directory / "config.json")
    if (directory / _TOKENIZER).exists():
        content, name = read_text(directory / _TOKENIZER), str(directory / _TOKENIZER)
    else:
        backend, defaults = backend_of_vocabulary(directory, values, model.get("model_type"))
        values = defaults | {key: value for key, value in values.items() if value is not None}
        content, name = backend.to_str(), str(directory)
    tokenizer = Tokenizer.from_content(content, name)
    values |= _ids(directory, model, values, {id_: token for token, id_ in tokenizer.vocabulary.items()})
    published = SpecialTokens.from_json(values, str(directory / _CONFIG))
    with naming(directory):
        return tokenizer.with_published(published)


def export_tokenizer(tokenizer: Tokenizer, directory: Path, frame: Frame | None = None) -> None:
    """Writes tokenizer.json and tokenizer_config.json such that transformers' AutoTokenizer gives the same ids.

    Args:
      tokenizer: any.
      directory: an existing folder.
      frame: what comes around texts where one of our own tokenizers is exported; a published one has its own.

    Raises:
      UserError: if a file cannot be written.
    """
    published = tokenizer.published or _own_special_tokens(tokenizer)
    frame = tokenizer.frame or frame or Frame()
    backend = Backend.from_str(tokenizer.content)
    # Some files ask for them, and padding would look like a part of the frame.
    backend.no_truncation()
    backend.no_padding()
    content = None
    if frame_of(backend) == frame:
        content = tokenizer.content
    else:
        set_frame(backend, frame)
    try:
        Tokenizer(backend, content=content, published=published).save(directory)
    except OSError as error:
        raise UserError(f"cannot write the tokenizer to {directory}: {error.strerror or error}") from error


def _own_special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    names = {id_: token for token, id_ in tokenizer.vocabulary.items()}
    roles = {"bos": tokenizer.end_of_text, "eos": tokenizer.end_of_text, "pad": tokenizer.end_of_text}
    roles |= {role: tokenizer.special_id(f"[{role.upper()}]") for role in ("unk", "mask", "cls", "sep")}
    return SpecialTokens({role: names[id_] for role, id_ in roles.items() if id_ is not None})


def _ids(
    directory: Path, model: Mapping[str, Any], values: Mapping[str, Any], names: Mapping[int, str]
) -> dict[str, Any]:
    """Special tokens that the model's files give by id; the roles only where no token is named for them."""
    generation = _object(directory / "generation_config.json")
    sources = [(directory / "generation_config.json", generation), (directory / "config.json", model)]
    found: dict[str, Any] = {}

    def tokens_of(key: str) -> list[str]:
        for path, source in sources:
            if (ids := source.get(key)) is not None:
                return _named(ids, f"{path}: {key}", names)
        return []

    for role in ("bos", "eos", "pad"):
        tokens = tokens_of(f"{role}_token_id")
        if tokens and values.get(f"{role}_token") is None:
            found[f"{role}_token"] = tokens[0]
    if not values.get("end_tokens"):
        found["end_tokens"] = tokens_of("eos_token_id")
    start = tokens_of("decoder_start_token_id")
    if start and not values.get("start_of_output_token"):
        found["start_of_output_token"] = start[0]
    return found


def _named(ids: Any, name: str, names: Mapping[int, str]) -> list[str]:
    ids = ids if isinstance(ids, list) else [ids]
    if len(ids) > _MOST_ENDS or any(isinstance(id_, bool) or not isinstance(id_, int) for id_ in ids):
        raise UserError(f"{name} must be a token id or a list of them: correct it")
    for id_ in ids:
        if id_ >= 0 and id_ not in names:
            raise UserError(f"{name}={id_} is not an id of the tokenizer: correct it")
    return [names[id_] for id_ in ids if id_ >= 0]  # -1 stands for none


def _template(directory: Path) -> dict[str, str]:
    path = directory / "chat_template.jinja"
    if path.exists():
        return {"chat_template": read_text(path)}
    found = _object(directory / "chat_template.json").get("chat_template")
    return {} if found is None else {"chat_template": found}


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no file."""
    if not path.exists():
        return {}
    if path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path} has more than {_MOST_BYTES:,} bytes: it is not a file of settings")
    return read_json_object(path)
