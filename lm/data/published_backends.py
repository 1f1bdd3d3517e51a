"""Published tokenizers as tokenizers of the `tokenizers` library, from their vocabularies.

Three kinds cover most: WordPiece (BERT), byte-level BPE (GPT-2 and its descendants, which differ in how they split text
before merging), and SentencePiece's two models, BPE and unigram (Llama, Gemma, T5, XLM-R).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from lm.data.frames import Frame
from lm.errors import UserError

# What a piece is, as SentencePiece and GGUF number it.
ORDINARY_PIECE, UNKNOWN_PIECE, CONTROL_PIECE, USER_PIECE, BYTE_PIECE = 1, 2, 3, 4, 6

_SPACE = "▁"
_LONGEST_WORD = 100  # of WordPiece, in characters

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDINGS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _gpt4_pattern(digits: str) -> str:
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_ENDINGS}"


def _gpt4o_pattern(contractions: str, digits: str) -> str:
    start = r"[^\r\n\p{L}\p{N}]?"
    words = f"{start}{_UPPER}*{_LOWER}+{contractions}|{start}{_UPPER}+{_LOWER}*{contractions}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_ENDINGS}"


@dataclasses.dataclass(frozen=True)
class Splitting:
    """How byte-level BPE splits text before merging.

    Attributes:
      pattern: of the pieces; "" is GPT-2's.
      single_digits: whether each digit is a piece of its own, before GPT-2's pattern.
      nfc: whether text is composed first (Unicode's normalization form C).
      ignore_merges: whether a piece that is a token needs no merges.
      add_bos: whether a text starts with the "bos" token unless a file says otherwise.
    """

    pattern: str = ""
    single_digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_GPT2 = Splitting()
_LLAMA3 = Splitting(_gpt4_pattern(r"\p{N}{1,3}"), ignore_merges=True, add_bos=True)
_GPT4 = Splitting(_gpt4_pattern(r"\p{N}{1,3}"))
_QWEN2 = Splitting(_gpt4_pattern(r"\p{N}"), nfc=True)
_SMOLLM = Splitting(single_digits=True)

# By the names that llama.cpp gives them in tokenizer.ggml.pre. A file without a name has "default": it is older than
# the names, when nearly all such models had GPT-2's.
SPLITTINGS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "mpt": _GPT2,
    "roberta-bpe": _GPT2,
    "modern-bert": Splitting(nfc=True),
    "olmo": Splitting(nfc=True),
    "smollm": _SMOLLM,
    "starcoder": _SMOLLM,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "dbrx": _GPT4,
    "smaug-bpe": _GPT4,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "stablelm2": dataclasses.replace(_QWEN2, nfc=False),
    "gpt-4o": Splitting(_gpt4o_pattern(f"{_CONTRACTIONS}?", r"\p{N}{1,3}")),
    "tekken": Splitting(_gpt4o_pattern("", r"\p{N}"), ignore_merges=True, add_bos=True),
}


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The vocabulary of a SentencePiece model.

    Attributes:
      tokens: by id.
      scores: log-probabilities of a unigram model; of BPE, the higher the earlier a token is merged.
      types: as numbered above.
      is_bpe: whether it is BPE; otherwise unigram.
      charsmap: normalization of characters, in SentencePiece's own format; empty for none.
      space_prefix: whether a text gets a space before it.
      squeeze_spaces: whether several spaces count as one.
    """

    tokens: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    is_bpe: bool
    charsmap: bytes = b""
    space_prefix: bool = True
    squeeze_spaces: bool = True

    def of_type(self, *types: int) -> list[int]:
        """Ids of the pieces of these types."""
        return [id_ for id_, type_ in enumerate(self.types) if type_ in types]


def wordpiece(
    vocabulary: Mapping[str, int],
    unknown: str = "[UNK]",
    lowercase: bool = True,
    chinese: bool = True,
    strip_accents: bool | None = None,
) -> Backend:
    """BERT's WordPiece (Devlin et al. 2019).

    Args:
      vocabulary: ids by token; continuations of words begin with ##.
      unknown: the token for unknown words.
      lowercase: whether text is lowercased.
      chinese: whether each Chinese character is a word.
      strip_accents: whether accents are removed; None: if lowercased.
    """
    model = models.WordPiece(dict(vocabulary), unk_token=unknown, max_input_chars_per_word=_LONGEST_WORD)
    backend = Backend(model)
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def byte_level(
    vocabulary: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    splitting: Splitting = _GPT2,
    add_prefix_space: bool = False,
) -> Backend:
    """Byte-level BPE (Radford et al. 2019).

    Args:
      vocabulary: ids by token, spelled in GPT-2's alphabet.
      merges: pairs of tokens, the first merged first.
      splitting: of text, before merging.
      add_prefix_space: whether a text gets a space before it.
    """
    backend = Backend(models.BPE(dict(vocabulary), list(merges), ignore_merges=splitting.ignore_merges))
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=not splitting.pattern)
    parts: list[Any] = []
    if splitting.single_digits:
        parts.append(pre_tokenizers.Digits(individual_digits=True))
    if splitting.pattern:
        parts.append(pre_tokenizers.Split(Regex(splitting.pattern), behavior="isolated"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([*parts, by_bytes]) if parts else by_bytes
    if splitting.nfc:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def of_pieces(pieces: Pieces, name: str) -> Backend:
    """A SentencePiece model.

    Raises:
      UserError: if it has no token for unknown text; the message starts with `name`.
    """
    unknown = pieces.of_type(UNKNOWN_PIECE)
    if not unknown:
        raise UserError(f"{name}: the vocabulary has no token for unknown text: it is damaged")
    has_bytes = bool(pieces.of_type(BYTE_PIECE))
    backend = Backend(_bpe(pieces, unknown[0], has_bytes) if pieces.is_bpe else _unigram(pieces, unknown[0], has_bytes))
    if pieces.charsmap:
        backend.normalizer = normalizers.Precompiled(pieces.charsmap)
    scheme = ("first" if pieces.is_bpe else "always") if pieces.space_prefix else "never"
    spaces = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=not pieces.is_bpe)
    squeezing = pieces.squeeze_spaces and not pieces.is_bpe
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces]) if squeezing else spaces
    strip = [decoders.Strip(" ", 1, 0)] if pieces.space_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    mark(backend, (pieces.tokens[id_] for id_ in pieces.of_type(UNKNOWN_PIECE, CONTROL_PIECE)), special=True)
    mark(backend, (pieces.tokens[id_] for id_ in pieces.of_type(USER_PIECE)), special=False)
    return backend


def mark(backend: Backend, tokens: Iterable[str], special: bool) -> None:
    """Makes tokens of the vocabulary units that text is split at first; `special` ones are no text."""
    added = [AddedToken(token, special=special, normalized=False) for token in tokens if token]
    (backend.add_special_tokens if special else backend.add_tokens)(added)


def _unigram(pieces: Pieces, unknown: int, has_bytes: bool) -> models.Unigram:
    return models.Unigram(list(zip(pieces.tokens, pieces.scores, strict=True)), unknown, has_bytes)


def _bpe(pieces: Pieces, unknown: int, has_bytes: bool) -> models.BPE:
    vocabulary = {token: id_ for id_, token in enumerate(pieces.tokens)}
    merges = merges_by_score(vocabulary, pieces.scores, skipped=set(pieces.of_type(UNKNOWN_PIECE, CONTROL_PIECE)))
    return models.BPE(vocabulary, merges, fuse_unk=True, byte_fallback=has_bytes, unk_token=pieces.tokens[unknown])


def merges_by_score(vocabulary: Mapping[str, int], scores: Sequence[float], skipped: set[int]) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE model, which stores scores instead: every split of a token into two others."""
    found = []
    for token, id_ in vocabulary.items():
        if id_ in skipped:
            continue
        for place in range(1, len(token)):
            left, right = token[:place], token[place:]
            if left in vocabulary and right in vocabulary:
                found.append((-scores[id_], id_, len(left), left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def set_frame(backend: Backend, frame: Frame) -> None:
    """Makes the tokenizer put the special tokens of a frame around texts, by its post-processor."""
    names = {id_: backend.id_to_token(id_) for id_ in (*frame.before, *frame.between, *frame.after)}

    def piece(ids: Sequence[int], type_: int) -> list[str]:
        return [f"{names[id_]}:{type_}" for id_ in ids]

    second = len(frame.between) - frame.between_second
    pair = [
        *piece(frame.before, 0),
        "$A:0",
        *piece(frame.between[:second], 0),
        *piece(frame.between[second:], frame.second_type),
        f"$B:{frame.second_type}",
        *piece(frame.after, frame.second_type),
    ]
    backend.post_processor = processors.TemplateProcessing(
        single=[*piece(frame.before, 0), "$A:0", *piece(frame.after, 0)],
        pair=pair,
        special_tokens=[(name, id_) for id_, name in names.items()],
    )
