"""A conversation with a model, which reads only what is new in each turn."""

from collections.abc import Iterator

from lm.data.chat import Chat
from lm.decoding.sample import Held
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
from lm.inference.language_models import LanguageModel


class Conversation:
    """Messages, the model's replies to them, and its cache of both.

    Args:
      model: a decoder.
      chat: how it was trained to read messages.
      how: the distribution of replies.
      system: what the model is told before the first message; "": nothing.

    Raises:
      UserError: for a model that is not a decoder.
    """

    def __init__(self, model: LanguageModel, chat: Chat, how: SamplingConfig, system: str = ""):
        if not model.continues:
            raise UserError(f"this run is {model.kind} that does not continue text: a conversation needs a decoder")
        self._model, self._chat, self._how = model, chat, how
        self._first: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self.reset()

    def reset(self) -> None:
        """Forgets all messages except the system's."""
        self.messages = list(self._first)
        self._held: Held | None = None

    def reply(self, message: str) -> Iterator[str]:
        """Yields the pieces of the model's reply; what was given when the iterator is closed becomes the reply.

        Raises:
          UserError: if the conversation is too long for the model; the message is not part of it then.
        """
        messages = [*self.messages, {"role": "user", "content": message}]
        tokens, longest = self._chat.render(messages), self._model.config.model.max_length
        if len(tokens) >= longest:
            raise UserError(
                f"the conversation has {len(tokens)} tokens, and config.model.max_length={longest}: begin a new one "
                "(/reset)"
            )
        held, self._held = self._held, None
        stream = self._model.stream_tokens(tokens, self._how, held)
        pieces: list[str] = []
        try:
            for piece in stream:
                pieces.append(piece)
                yield piece
        finally:
            self._held = stream.held
            self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]
