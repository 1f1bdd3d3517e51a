"""What each token's text says about its place: whether it continues a word, whether it ends a sentence.

Tokenizers write tokens in three ways: as text, as bytes in GPT-2's alphabet (Radford et al. 2019), or as words and, in
WordPiece, their continuations, which begin with ## (Devlin et al. 2019).

Axes: b rows, T tokens of a row, V vocabulary.
"""

import dataclasses
import functools

import numpy as np
from tokenizers import decoders, pre_tokenizers

from lm.data.segmentation import Segmenter, segmenter, word_starts
from lm.data.tokenizers import Tokenizer
from lm.writing_systems import is_spaceless

_SENTENCE_ENDS = (".", "!", "?", "\n")


@dataclasses.dataclass(frozen=True, eq=False)
class WordBorders:
    """Which tokens stick together. Two adjacent tokens belong to one word if both sides of the seam are sticky.

    Attributes:
      sticky_start_V: whether a token can continue a word that the previous token left open.
      sticky_end_V: whether a token leaves its word open.
      spaceless_start_V: whether a token begins with a character that has no spaces around its words.
      spaceless_end_V: whether it ends with one.
      bytes_V: UTF-8 of each token, empty for special tokens.
      segment: finds the words where there are no spaces; None: each character is one.
    """

    sticky_start_V: np.ndarray
    sticky_end_V: np.ndarray
    spaceless_start_V: np.ndarray
    spaceless_end_V: np.ndarray
    bytes_V: list[bytes]
    segment: Segmenter | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, segmentation: str = "") -> "WordBorders":
        """The borders that follow from a tokenizer's vocabulary and, where there are no spaces, from a segmenter.

        WordPiece marks them in its tokens. Otherwise words are runs of letters and digits; white space and punctuation
        separate them, and are words of their own.

        Args:
          tokenizer: has the vocabulary.
          segmentation: of `lm.data.segmentation.SEGMENTERS`.

        Raises:
          UserError: if the segmenter is not installed.
        """
        bytes_V = token_bytes(tokenizer)
        spaceless = (
            np.array([_begins_spaceless(data) for data in bytes_V]),
            np.array([is_spaceless(data.decode("utf-8", "replace")[-1:] or " ") for data in bytes_V]),
            bytes_V,
            segmenter(segmentation) if segmentation else None,
        )
        texts = token_texts(tokenizer)
        if not tokenizer.is_byte_level and _has_words_without_spaces(texts):
            # Words, or their beginnings, and continuations: in a byte-level vocabulary ## would be text.
            return cls(np.array([text.startswith("##") for text in texts]), np.ones(len(texts), bool), *spaceless)
        starts_V = np.array([_is_of_word(text[:1]) for text in texts])
        return cls(starts_V, np.array([_is_of_word(text[-1:]) for text in texts]), *spaceless)

    def begins(self, tokens_bT: np.ndarray) -> np.ndarray:
        """Whether each token begins a word, [b, T]; the first of a row always does."""
        begins_bT = np.ones(tokens_bT.shape, bool)
        before_bT, after_bT = tokens_bT[:, :-1], tokens_bT[:, 1:]
        begins_bT[:, 1:] = ~(self.sticky_end_V[before_bT] & self.sticky_start_V[after_bT])
        spaceless_bT = np.zeros(tokens_bT.shape, bool)
        spaceless_bT[:, 1:] = self.spaceless_end_V[before_bT] | self.spaceless_start_V[after_bT]
        if self.segment is None:
            return begins_bT | spaceless_bT
        for tokens_T, begins_T, spaceless_T in zip(tokens_bT, begins_bT, spaceless_bT, strict=True):
            if spaceless_T.any():
                starts_T = word_starts([self.bytes_V[token] for token in tokens_T], self.segment)
                begins_T[spaceless_T] = starts_T[spaceless_T]
        return begins_bT


def sentence_ends(tokenizer: Tokenizer) -> np.ndarray:
    """Whether each token's text ends with a full stop, an exclamation mark, a question mark or a line break, [V]."""
    return np.array([text.rstrip(" ").endswith(_SENTENCE_ENDS) for text in token_texts(tokenizer)])


def ordinary_tokens(tokenizer: Tokenizer) -> np.ndarray:
    """Whether each id stands for text, [V]: it has a token, and the token is not special."""
    ordinary_V = np.zeros(tokenizer.vocab_size, bool)
    for token, id_ in tokenizer.vocabulary.items():
        ordinary_V[id_] = tokenizer.special_id(token) is None
    return ordinary_V


def token_texts(tokenizer: Tokenizer) -> list[str]:
    """The text of each id, "" for ids without a token. Bytes that are not a character become U+FFFD."""
    texts = [""] * tokenizer.vocab_size
    decode = decoders.ByteLevel().decode if tokenizer.is_byte_level else "".join
    for token, id_ in tokenizer.vocabulary.items():
        texts[id_] = decode([token])
    return texts


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """UTF-8 of each id's text, which may be a part of a character; empty for special tokens and ids without a token."""
    found = [b""] * tokenizer.vocab_size
    byte_level = tokenizer.is_byte_level
    for token, id_ in tokenizer.vocabulary.items():
        if tokenizer.special_id(token) is None:
            found[id_] = _bytes_of(token) if byte_level else token.removeprefix("##").encode()
    return found


def _bytes_of(token: str) -> bytes:
    """The bytes that a byte-level token spells."""
    alphabet = _alphabet()
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()  # added as text


@functools.cache
def _alphabet() -> dict[str, int]:
    """The byte of each character of GPT-2's alphabet, for all bytes of UTF-8."""
    points = [
        *range(0x800),
        *range(0x800, 0x1000, 0x800),
        *range(0x1000, 0x10000, 0x1000),
        *range(0x10000, 0x110000, 0x40000),
    ]
    text = "".join(map(chr, points)) + chr(0x10FFFF)
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return dict(zip("".join(piece for piece, _ in spelled), text.encode(), strict=True))


def _begins_spaceless(data: bytes) -> bool:
    """Of half a character only its first byte is known: E3 to E9 begin Chinese characters and kana."""
    text = data.decode("utf-8", "replace")
    return is_spaceless(text[0]) or (text[0] == "\ufffd" and 0xE3 <= data[0] <= 0xE9) if text else False


def _has_words_without_spaces(texts: list[str]) -> bool:
    """Whether word boundaries are implicit: tokens are longer than characters, yet none begins with a space."""
    return any(len(text) > 1 and text.isalnum() for text in texts) and not any(
        text.startswith((" ", "\u2581")) for text in texts
    )


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character == "\ufffd"
