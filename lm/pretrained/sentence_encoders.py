"""How a published sentence encoder makes a vector of a text: the settings files of sentence-transformers."""

import dataclasses
from pathlib import Path

from lm.errors import UserError
from lm.files import is_plain_name, read_json, read_json_object, write_json
from lm.pretrained.published_config import PublishedConfig

_MODULES = "modules.json"
# The names of a pooling mode, and before sentence-transformers 6 flags of each mode, with our names of those supported.
_POOLINGS = {"mean": "mean", "cls": "first"}
_MODE_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclasses.dataclass(frozen=True)
class SentenceEncoding:
    """How the last hidden states become a text's vector.

    Attributes:
      pooling: "mean" of the states of all tokens, or that of the "first".
      normalize: whether the vector is scaled to length 1.
      sequence_length: to how many tokens texts are cut; None: to as many as the model can process.
    """

    pooling: str
    normalize: bool
    sequence_length: int | None


def read_sentence_encoding(path: Path) -> SentenceEncoding | None:
    """The settings in a directory of sentence-transformers; None if it is not one.

    Args:
      path: the directory.

    Raises:
      UserError: if a file is damaged, or the model does something else to make a vector.
    """
    place = path / _MODULES
    if not place.exists():
        return None
    modules = read_json(place)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise UserError(f"{place} must be a list of objects: it is damaged")
    # Classes moved between versions; their own names did not change.
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UserError(
            f"{place}: {', '.join(kinds) or 'nothing'} is not supported, only Transformer, Pooling and, if need be, "
            "Normalize"
        )
    transformer, pooling = (_folder(path, module, place) for module in modules[:2])
    return SentenceEncoding(
        pooling=_pooling(_settings(pooling / "config.json")),
        normalize="Normalize" in kinds,
        sequence_length=_sequence_length(transformer / "sentence_bert_config.json"),
    )


def write_sentence_encoding(path: Path, encoding: SentenceEncoding, width: int) -> None:
    """Writes the settings as sentence-transformers does, with the keys that all its versions read.

    Args:
      path: an existing directory.
      encoding: how vectors are made.
      width: of the vectors.

    Raises:
      OSError: if they cannot be written.
    """
    kinds = ("Transformer", "Pooling", "Normalize") if encoding.normalize else ("Transformer", "Pooling")
    folders = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    modules = [
        {"idx": number, "name": str(number), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, folder) in enumerate(zip(kinds, folders, strict=True))
    ]
    chosen = next(theirs for theirs, ours in _POOLINGS.items() if ours == encoding.pooling)
    flags = {flag: mode == chosen for flag, mode in _MODE_FLAGS.items()}
    (path / folders[1]).mkdir(exist_ok=True)
    write_json(path / folders[1] / "config.json", {"word_embedding_dimension": width, **flags})
    lengths = {} if encoding.sequence_length is None else {"max_seq_length": encoding.sequence_length}
    write_json(path / "sentence_bert_config.json", {**lengths, "do_lower_case": False})
    write_json(path / _MODULES, modules)


def _folder(path: Path, module: dict, place: Path) -> Path:
    name = module.get("path", "")
    if name == "":
        return path
    if not isinstance(name, str) or not is_plain_name(name):
        raise UserError(f"{place}: path must be the name of a folder beside it, got {str(name)[:60]!r}")
    return path / name


def _settings(place: Path) -> PublishedConfig:
    return PublishedConfig(read_json_object(place), str(place))


def _pooling(settings: PublishedConfig) -> str:
    modes = settings.values.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _MODE_FLAGS.items() if settings.flag(flag, False)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in _POOLINGS:
        raise UserError(
            f"{settings.place}: pooling by {modes!r} is not supported, only by one of {', '.join(_POOLINGS)}"
        )
    # Some models leave their instructions out of the mean.
    settings.expect("include_prompt", True)
    return _POOLINGS[modes[0]]


def _sequence_length(place: Path) -> int | None:
    if not place.exists():
        return None
    settings = _settings(place)
    # Lowercases texts whatever the tokenizer does.
    settings.expect("do_lower_case", False)
    settings.expect("transformer_task", "feature-extraction")
    return settings.integer("max_seq_length", None, least=1)
