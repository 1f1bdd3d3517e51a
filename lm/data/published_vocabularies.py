"""Published tokenizers without a tokenizer.json: vocab.txt, vocab.json with merges.txt, and SentencePiece models.

These files hold vocabularies only. What else there is to know comes with the kind of tokenizer, as the model's
`tokenizer_class` or its `model_type` names it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from lm.data.frames import Frame, with_bos_and_eos
from lm.data.published_backends import (
    CONTROL_PIECE,
    ORDINARY_PIECE,
    SPLITTINGS,
    UNKNOWN_PIECE,
    Pieces,
    byte_level,
    mark,
    of_pieces,
    set_frame,
    wordpiece,
)
from lm.data.sentencepiece_files import read_sentencepiece
from lm.data.special_tokens import ROLES, spelling
from lm.errors import UserError
from lm.files import read_json, read_text

_Settings = Mapping[str, Any]
_Made = tuple[Backend, dict[str, Any]]

_BERT_ROLES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_ROBERTA_ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_T5_ROLES = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_LLAMA_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_GEMMA_ROLES = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
_GPT2_ROLES = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
_QWEN2_ROLES = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}

_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
_T5_SENTINELS = 100


def backend_of_vocabulary(directory: Path, settings: _Settings, model_type: Any) -> _Made:
    """The tokenizer whose vocabulary lies in a directory, and the special tokens that its kind has by default.

    Args:
      directory: without tokenizer.json.
      settings: of tokenizer_config.json.
      model_type: of config.json, for directories whose settings don't name the kind.

    Raises:
      UserError: if no file is known, the kind isn't, or a file is damaged.
    """
    kind = _kind(directory, settings, model_type)
    try:
        backend, roles = kind.make(directory, settings)
        _add_tokens(backend, _added_tokens(directory, settings))
        tokens = roles | {f"{role}_token": token for role in ROLES if (token := _token(settings, role))}
        present = {key: token for key, token in tokens.items() if backend.token_to_id(token) is not None}
        mark(backend, present.values(), special=True)
        set_frame(backend, kind.frame(_Ids(backend, present, directory), settings))
    except UserError:
        raise
    except Exception as error:  # the library raises a bare Exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the tokenizer in {directory} is damaged: {reason:.300}") from error
    return backend, {key: token for key, token in roles.items() if key in present}


@dataclasses.dataclass(frozen=True)
class _Ids:
    """Ids of special tokens by their role."""

    backend: Backend
    tokens: Mapping[str, str]
    directory: Path

    def __getitem__(self, role: str) -> int:
        token = self.tokens.get(f"{role}_token")
        id_ = None if token is None else self.backend.token_to_id(token)
        if id_ is None:
            raise UserError(f"the tokenizer in {self.directory} has no {role}_token: name it in tokenizer_config.json")
        return id_


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of tokenizer.

    Attributes:
      make: the tokenizer and its special tokens, from a directory and its settings.
      frame: what comes around texts, from the special tokens and the settings.
    """

    make: Callable[[Path, _Settings], _Made]
    frame: Callable[[_Ids, _Settings], Frame]


def _bert(directory: Path, settings: _Settings) -> _Made:
    path = directory / "vocab.txt"
    tokens = read_text(path).rstrip("\n").split("\n")
    vocabulary = {token.rstrip("\r"): id_ for id_, token in enumerate(tokens)}
    unknown = _token(settings, "unk") or _BERT_ROLES["unk_token"]
    lowercase = settings.get("do_lower_case", True)
    chinese = settings.get("tokenize_chinese_chars", True)
    return wordpiece(vocabulary, unknown, lowercase, chinese, settings.get("strip_accents")), dict(_BERT_ROLES)


def _bert_frame(ids: _Ids, settings: _Settings) -> Frame:
    return Frame((ids["cls"],), (ids["sep"],), (ids["sep"],))


def _byte_level_of(splitting: str, roles: dict[str, str]) -> Callable[[Path, _Settings], _Made]:
    def make(directory: Path, settings: _Settings) -> _Made:
        vocabulary = _vocabulary(directory / "vocab.json")
        merges = _merges(directory / "merges.txt")
        spaced = bool(settings.get("add_prefix_space", False))
        return byte_level(vocabulary, merges, SPLITTINGS[splitting], spaced), dict(roles)

    return make


def _roberta(directory: Path, settings: _Settings) -> _Made:
    backend, roles = _byte_level_of("gpt-2", _ROBERTA_ROLES)(directory, settings)
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    return backend, roles


def _roberta_frame(ids: _Ids, settings: _Settings) -> Frame:
    separator = ids["sep"]
    return Frame((ids["cls"],), (separator, separator), (separator,), second_type=0)


def _sentencepiece(roles: dict[str, str]) -> Callable[[Path, _Settings], _Made]:
    def make(directory: Path, settings: _Settings) -> _Made:
        path = _sentencepiece_file(directory)
        return of_pieces(read_sentencepiece(path), str(path)), dict(roles)

    return make


def _t5(directory: Path, settings: _Settings) -> _Made:
    path = _sentencepiece_file(directory)
    pieces = read_sentencepiece(path)
    count = settings.get("extra_ids", _T5_SENTINELS)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= 10_000:
        raise UserError(f"{directory / 'tokenizer_config.json'}: extra_ids must be in [0, 10,000], got {count!r:.50}")
    sentinels = [f"<extra_id_{number}>" for number in reversed(range(count))]  # the first has the last id
    missing = [token for token in sentinels if token not in set(pieces.tokens)]
    backend = of_pieces(_with_control_pieces(pieces, missing), str(path))
    mark(backend, missing, special=True)
    return backend, dict(_T5_ROLES)


def _xlm_roberta(directory: Path, settings: _Settings) -> _Made:
    # Fairseq numbered its own tokens first, so all other ids are one higher than in the file.
    path = _sentencepiece_file(directory)
    pieces = read_sentencepiece(path)
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    moved = dataclasses.replace(
        pieces,
        tokens=[*first, *pieces.tokens[3:], "<mask>"],
        scores=[0.0] * len(first) + [*pieces.scores[3:], 0.0],
        types=[*[CONTROL_PIECE] * 3, UNKNOWN_PIECE, *pieces.types[3:], ORDINARY_PIECE],
    )
    backend = of_pieces(moved, str(path))
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    return backend, dict(_ROBERTA_ROLES)


def _marian(directory: Path, settings: _Settings) -> _Made:
    # Two SentencePiece models share one numbering. Sources are split by the first; decoding needs the numbering alone.
    path = directory / "source.spm"
    pieces = read_sentencepiece(path)
    vocabulary = _vocabulary(directory / "vocab.json")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise UserError(f"{directory / 'vocab.json'} must number its tokens from 0 without gaps: it is damaged")
    scores = dict(zip(pieces.tokens, pieces.scores, strict=True))
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    lowest = min(pieces.scores) - 100  # for pieces of the target, which no source should be split into
    special = {"<unk>": UNKNOWN_PIECE, "</s>": CONTROL_PIECE, "<pad>": CONTROL_PIECE}
    types = [special.get(token, ORDINARY_PIECE) for token in tokens]
    numbered = dataclasses.replace(
        pieces, tokens=tokens, scores=[scores.get(token, lowest) for token in tokens], types=types
    )
    return of_pieces(numbered, str(path)), dict(_T5_ROLES)


def _no_frame(ids: _Ids, settings: _Settings) -> Frame:
    return Frame()


def _llama_frame(ids: _Ids, settings: _Settings) -> Frame:
    bos = ids["bos"] if settings.get("add_bos_token", True) else None
    eos = ids["eos"] if settings.get("add_eos_token", False) else None
    return with_bos_and_eos(Frame(), bos, eos)


def _t5_frame(ids: _Ids, settings: _Settings) -> Frame:
    return with_bos_and_eos(Frame(second_type=0), None, ids["eos"])


# By the names of transformers' classes, in lower case and without "TokenizerFast" or "Tokenizer"; a model type that is
# called otherwise stands beside it.
_KINDS = {
    "bert": _Kind(_bert, _bert_frame),
    "distilbert": _Kind(_bert, _bert_frame),
    "electra": _Kind(_bert, _bert_frame),
    "gpt2": _Kind(_byte_level_of("gpt-2", _GPT2_ROLES), _no_frame),
    "qwen2": _Kind(_byte_level_of("qwen2", _QWEN2_ROLES), _no_frame),
    "qwen3": _Kind(_byte_level_of("qwen2", _QWEN2_ROLES), _no_frame),
    "roberta": _Kind(_roberta, _roberta_frame),
    "bart": _Kind(_roberta, _roberta_frame),
    "xlmroberta": _Kind(_xlm_roberta, _roberta_frame),
    "t5": _Kind(_t5, _t5_frame),
    "mt5": _Kind(_t5, _t5_frame),
    "llama": _Kind(_sentencepiece(_LLAMA_ROLES), _llama_frame),
    "mistral": _Kind(_sentencepiece(_LLAMA_ROLES), _llama_frame),
    "gemma": _Kind(_sentencepiece(_GEMMA_ROLES), _llama_frame),
    "gemma2": _Kind(_sentencepiece(_GEMMA_ROLES), _llama_frame),
    "gemma3text": _Kind(_sentencepiece(_GEMMA_ROLES), _llama_frame),
    "marian": _Kind(_marian, _t5_frame),
}
_FILES = ("vocab.txt", "vocab.json", "merges.txt", "source.spm", *_SENTENCEPIECE)


def _kind(directory: Path, settings: _Settings, model_type: Any) -> _Kind:
    if not any((directory / name).exists() for name in _FILES):
        raise UserError(f"{directory} has no tokenizer: none of tokenizer.json, {', '.join(_FILES)} is there")
    given = settings.get("tokenizer_class")
    for name in (given, model_type):
        known = str(name).lower().removesuffix("fast").removesuffix("tokenizer").replace("-", "").replace("_", "")
        if known in _KINDS:
            return _KINDS[known]
    raise UserError(
        f"{directory} has no tokenizer.json, and its tokenizer ({given or model_type or 'not named'!s:.50}) is not "
        f"among those that are known without: {', '.join(_KINDS)}"
    )


def _sentencepiece_file(directory: Path) -> Path:
    found = next((directory / name for name in _SENTENCEPIECE if (directory / name).exists()), None)
    if found is None:
        raise UserError(f"{directory} has none of {', '.join(_SENTENCEPIECE)}")
    return found


def _with_control_pieces(pieces: Pieces, tokens: list[str]) -> Pieces:
    count = len(tokens)
    return dataclasses.replace(
        pieces,
        tokens=[*pieces.tokens, *tokens],
        scores=[*pieces.scores, *[0.0] * count],
        types=[*pieces.types, *[CONTROL_PIECE] * count],
    )


def _token(settings: _Settings, role: str) -> str | None:
    value = settings.get(f"{role}_token")
    return None if value is None else spelling(value, f"tokenizer_config.json: {role}_token")


def _added_tokens(directory: Path, settings: _Settings) -> list[tuple[int, AddedToken]]:
    """Tokens beside the vocabulary, by id: of tokenizer_config.json, or of added_tokens.json in older directories."""
    listed = settings.get("added_tokens_decoder") or {}
    if not listed and (directory / "added_tokens.json").exists():
        listed = {id_: token for token, id_ in _vocabulary(directory / "added_tokens.json").items()}
    if not isinstance(listed, dict):
        raise UserError(f"{directory / 'tokenizer_config.json'}: added_tokens_decoder must be an object")
    return sorted(((int(id_), _added(token)) for id_, token in listed.items()), key=lambda pair: pair[0])


def _added(token: Any) -> AddedToken:
    flags = token if isinstance(token, dict) else {"special": True}
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    known = {name: bool(flags[name]) for name in names if name in flags}
    return AddedToken(spelling(token, "tokenizer_config.json: added_tokens_decoder"), **({"normalized": False} | known))


def _add_tokens(backend: Backend, tokens: list[tuple[int, AddedToken]]) -> None:
    for id_, token in tokens:
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if backend.token_to_id(token.content) != id_:
            raise ValueError(f"its added token {token.content!r:.50} cannot have the id {id_}")


def _vocabulary(path: Path) -> dict[str, int]:
    value = read_json(path)
    if not isinstance(value, dict) or any(isinstance(id_, bool) or not isinstance(id_, int) for id_ in value.values()):
        raise UserError(f"{path} must be a JSON object from tokens to ids: it is damaged")
    if len(set(value.values())) < len(value) or not all(0 <= id_ < 2**24 for id_ in value.values()):
        raise UserError(f"{path} must give each token its own id in [0, {2**24:,}): it is damaged")
    return value


def _merges(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in read_text(path).split("\n") if line and not line.startswith("#version")]
    pairs = [line.rstrip("\r").split(" ") for line in lines]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(f"{path} must have two tokens on each line: it is damaged")
    return [(left, right) for left, right in pairs]
