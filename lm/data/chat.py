"""Conversations as token ids, by the chat template that a published tokenizer brings.

The special tokens that a template writes become tokens; what a message spells stays text, whatever it spells and
whatever the template does with it: the tokens are told apart by private characters (`lm.data.control_tokens`), which
messages may not contain. A template runs in a process of its own (`lm.data.chat_renderer`), which ends after a few
seconds of computing and cannot take more than a gigabyte.
"""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.data.control_tokens import ControlTokens
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError

Message = Mapping[str, Any]

# Some templates put <| and |> around a role, so a role must not be able to spell another token.
SPEAKERS = ("system", "developer", "user", "assistant", "model", "tool", "function", "ipython")

_RENDERER = Path(__file__).with_name("chat_renderer.py")
_SECONDS = 5
_MEMORY = 2**30  # bytes
_CONVERSATIONS_PER_SECOND = 100  # at least, on a slow machine


@dataclasses.dataclass(frozen=True)
class Chat:
    """A chat template and the tokenizer that it belongs to.

    Attributes:
      tokenizer: of the model.
      template: in Jinja.
    """

    tokenizer: Tokenizer
    template: str

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Chat":
        """The chat of a tokenizer's own template.

        Raises:
          UserError: if it has none.
        """
        template = None if tokenizer.published is None else tokenizer.published.chat_template
        if template is None:
            raise UserError("the tokenizer has no chat_template in a tokenizer_config.json: give a prompt instead")
        return cls(tokenizer, template)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, as the model was trained to read it.

        Args:
          messages: each with a "role", one of `SPEAKERS`, and a "content", a string.
          add_generation_prompt: whether the model's answer comes next.

        Raises:
          UserError: if the messages are malformed, or the template refuses them, fails, or takes too long.
        """
        return self.render_batch([messages], add_generation_prompt)[0]

    def render_batch(
        self, conversations: Sequence[Sequence[Message]], add_generation_prompt: bool = True
    ) -> list[list[int]]:
        """Token ids of each conversation, as in `render`; faster than one by one."""
        control = self.tokenizer.control_tokens
        return [control.encode(text) for text in self.texts(conversations, add_generation_prompt)]

    def texts(self, conversations: Sequence[Sequence[Message]], add_generation_prompt: bool = True) -> list[str]:
        """Each conversation with private characters for the special tokens that the template writes.

        `tokenizer.control_tokens` encodes such a text, also with more text after it.

        Raises:
          UserError: as `render` does.
        """
        if not conversations:
            return []
        control = self.tokenizer.control_tokens
        assembled = _assembled(control, self.template)
        prepared = [
            [_prepared(message, f"message {number}", control, assembled) for number, message in enumerate(messages, 1)]
            for messages in conversations
        ]
        job = {
            "template": control.checked(self.template),
            "spellings": control.spellings,
            "variables": self._special_variables(),
            "conversations": prepared,
            "add_generation_prompt": add_generation_prompt,
        }
        return [_with_assembled(text, control, assembled) for text in _rendered(job)]

    def _special_variables(self) -> dict[str, Any]:
        """The variables bos_token, eos_token and so on."""
        roles = {} if self.tokenizer.published is None else self.tokenizer.published.roles
        return {f"{role}_token": self.tokenizer.control_tokens.spellings[token] for role, token in roles.items()}


def _assembled(control: ControlTokens, template: str) -> list[str]:
    """Special tokens that the template may put together from a role, as in '<|' + message['role'] + '|>'."""
    rest = control.without_names(template)
    found = []
    for name in control.spellings:
        for speaker in SPEAKERS:
            before, middle, after = name.partition(speaker)
            if middle and before and before in rest and after in rest:
                found.append(name)
    return found


def _with_assembled(text: str, control: ControlTokens, assembled: Sequence[str]) -> str:
    for name in assembled:
        text = text.replace(name, control.spellings[name])
    return text.replace(control.spare, "")


def _prepared(message: Message, place: str, control: ControlTokens, assembled: Sequence[str]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or message.get("role") not in SPEAKERS:
        raise UserError(f"{place} of the conversation must have a role, one of {', '.join(SPEAKERS)}")
    if not isinstance(message.get("content", ""), str | list | None):
        raise UserError(f"{place} of the conversation must have a content, a string")
    return _inert({**message, "role": ""}, control, assembled) | {"role": message["role"]}


def _inert(value: Any, control: ControlTokens, assembled: Sequence[str]) -> Any:
    """The value with strings that cannot become special tokens, not even in pieces that the template puts together.

    Where a template assembles tokens, a private character follows each character that such a token begins with. It
    disappears before the text is encoded.
    """
    if isinstance(value, str):
        first = "".join(sorted({re.escape(name[0]) for name in assembled}))
        checked = control.checked(value)
        return re.sub(f"([{first}])", rf"\1{control.spare}", checked) if first else checked
    if isinstance(value, Mapping):
        return {_inert(str(name), control, ()): _inert(inner, control, assembled) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_inert(inner, control, assembled) for inner in value]
    return value


def _rendered(job: Mapping[str, Any]) -> list[str]:
    seconds = _SECONDS + len(job["conversations"]) // _CONVERSATIONS_PER_SECOND
    command = [sys.executable, "-I", str(_RENDERER)]
    try:
        content = json.dumps({**job, "seconds": seconds, "memory": _MEMORY})
        # Other processes may keep the cores busy, so the clock on the wall has a wider limit.
        done = subprocess.run(command, input=content.encode(), capture_output=True, timeout=4 * seconds, check=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"a conversation must be of strings, numbers, lists and objects: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise _refused(f"it takes more than {4 * seconds} seconds") from error
    if b"No module named 'jinja2'" in done.stderr:
        raise UserError("chat templates need the package jinja2: pip install 'jinja2>=3.1.6'")
    try:
        result = json.loads(done.stdout)
    except ValueError as error:
        raise _refused(f"it takes more than {seconds} seconds of computing, or too much memory") from error
    if "error" in result:
        raise _refused(" ".join(result["error"].split()))
    return result["texts"]


def _refused(reason: str) -> UserError:
    return UserError(f"the chat template cannot write this conversation: {reason:.300}")
