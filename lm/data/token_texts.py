"""What each token's text says about its place: whether it continues a word, whether it ends a sentence.

Tokenizers write tokens in three ways: as text, as bytes in GPT-2's alphabet (Radford et al. 2019), or as words and, in
WordPiece, their continuations, which begin with ## (Devlin et al. 2019).

Axes: b rows, T tokens of a row, V vocabulary.
"""

import dataclasses

import numpy as np
from tokenizers import decoders, pre_tokenizers

from lm.data.tokenizers import Tokenizer

_SENTENCE_ENDS = (".", "!", "?", "\n")


@dataclasses.dataclass(frozen=True, eq=False)
class WordBorders:
    """Which tokens stick together. Two adjacent tokens belong to one word if both sides of the seam are sticky.

    Attributes:
      sticky_start_V: whether a token can continue a word that the previous token left open.
      sticky_end_V: whether a token leaves its word open.
    """

    sticky_start_V: np.ndarray
    sticky_end_V: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "WordBorders":
        """The borders that follow from a tokenizer's vocabulary.

        WordPiece marks them in its tokens. Otherwise words are runs of letters and digits; white space and punctuation
        separate them, and are words of their own.
        """
        texts = token_texts(tokenizer)
        if not _is_byte_level(tokenizer) and _has_words_without_spaces(texts):
            # Words, or their beginnings, and continuations: in a byte-level vocabulary ## would be text.
            return cls(np.array([text.startswith("##") for text in texts]), np.ones(len(texts), bool))
        return cls(
            np.array([_is_of_word(text[:1]) for text in texts]), np.array([_is_of_word(text[-1:]) for text in texts])
        )

    def begins(self, tokens_bT: np.ndarray) -> np.ndarray:
        """Whether each token begins a word, [b, T]; the first of a row always does."""
        begins_bT = np.ones(tokens_bT.shape, bool)
        begins_bT[:, 1:] = ~(self.sticky_end_V[tokens_bT[:, :-1]] & self.sticky_start_V[tokens_bT[:, 1:]])
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
    decode = decoders.ByteLevel().decode if _is_byte_level(tokenizer) else "".join
    for token, id_ in tokenizer.vocabulary.items():
        texts[id_] = decode([token])
    return texts


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    # The whole byte alphabet is in the vocabulary, so that no text is unknown.
    return set(pre_tokenizers.ByteLevel.alphabet()) <= tokenizer.vocabulary.keys()


def _has_words_without_spaces(texts: list[str]) -> bool:
    """Whether word boundaries are implicit: tokens are longer than characters, yet none begins with a space."""
    return any(len(text) > 1 and text.isalnum() for text in texts) and not any(
        text.startswith((" ", "\u2581")) for text in texts
    )


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character == "\ufffd"
