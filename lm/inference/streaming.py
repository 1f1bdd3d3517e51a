"""A text as it is written, piece by piece."""

from collections.abc import Callable, Iterator, Sequence

from lm.decoding.continuation import Continuation
from lm.decoding.sample import Held, Writing
from lm.decoding.stop_strings import before_stop, certain_length

# Tokens of a piece: each piece costs a look at the device.
_TOKENS_OF_A_PIECE = 4


class TextStream:
    """Iterates over the pieces of a text while it is written.

    A piece is given as soon as later tokens can't change it: whole characters, and nothing that may turn out to be the
    beginning of a stop string. All pieces together are the text that `LanguageModel.generate` gives.

    Args:
      writing: one continuation.
      decode: tokens to text.
      ends: the ids at which it ends.
      stop: strings at which it ends.
    """

    def __init__(
        self,
        writing: Writing,
        decode: Callable[[Sequence[int]], str],
        ends: Sequence[int] = (),
        stop: Sequence[str] = (),
    ):
        self._writing, self._decode, self._ends, self._stop = writing, decode, ends, stop

    def __iter__(self) -> Iterator[str]:
        """Yields pieces that are not empty."""
        given = ""
        while True:
            ended = bool(self._writing.done_R.all())
            text = self._text()
            cut = before_stop(text, self._stop)
            if cut is not None:
                text = cut[0]
            elif not ended:
                text = text[: certain_length(text, self._stop)]
            # A decoder may change white space before the last words: then it waits for the end.
            if (ended or cut is not None or text.startswith(given)) and len(text) > len(given):
                yield text[len(given) :]
                given = text
            if ended or cut is not None:
                return
            self._writing.advance(_TOKENS_OF_A_PIECE)

    @property
    def continuation(self) -> Continuation:
        """The tokens so far."""
        return self._writing.continuations()[0]

    @property
    def held(self) -> Held | None:
        """What the model has read and written so far, for the next message of a conversation."""
        return self._writing.held

    def _text(self) -> str:
        tokens = self._writing.tokens()
        return self._decode(tokens[:-1] if tokens and tokens[-1] in self._ends else tokens)
