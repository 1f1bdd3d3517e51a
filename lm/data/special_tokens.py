"""The special tokens of a published tokenizer, in the keys of Hugging Face's tokenizer_config.json.

Beside Hugging Face's keys there are two of ours: `end_tokens`, all the tokens at which generation ends, and
`start_of_output_token`, after which an encoder-decoder's output starts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lm.errors import UserError

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "[UNK]"

ROLES = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")
# The names that our own tokenizers use, and the roles that stand in for them in a published tokenizer.
ALIASES = {"[CLS]": ("cls", "bos"), "[SEP]": ("sep", "eos"), "[MASK]": ("mask",)}

_LONGEST_TOKEN = 1000  # in characters
_LONGEST_TEMPLATE = 1_000_000
_MOST_TOKENS = 1000
_LONGEST_SEQUENCE = 2**31  # Hugging Face writes 10**30 where there is no limit


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """What a published tokenizer says of its special tokens, by their spelling.

    Attributes:
      roles: the token of each of `ROLES` that it has.
      end_tokens: further tokens at which generation ends, beside the one with the role "eos".
      start_of_output_token: the token that an encoder-decoder's output starts after, or None.
      chat_template: a Jinja template, or None.
      add_bos: whether a text starts with the "bos" token, even if tokenizer.json does not say so.
      add_eos: whether a text ends with the "eos" token, even if tokenizer.json does not say so.
      padding_side: "left" or "right". Batches here are padded on the right all the same: attention never sees padding.
      model_max_length: the longest sequence that the tokenizer was made for, or None.
    """

    roles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    end_tokens: tuple[str, ...] = ()
    start_of_output_token: str | None = None
    chat_template: str | None = None
    add_bos: bool = False
    add_eos: bool = False
    padding_side: str = "right"
    model_max_length: int | None = None

    @classmethod
    def from_json(cls, values: Any, name: str) -> "SpecialTokens":
        """Checks the values of a tokenizer_config.json.

        Args:
          values: the value in the file; keys that are not known here are ignored.
          name: of the file, for messages.

        Raises:
          UserError: if a value has the wrong type or an implausible size.
        """
        if not isinstance(values, dict):
            raise UserError(f"{name} must be a JSON object")
        reader = _Reader(values, name)
        end_tokens = values.get("end_tokens") or []
        if not isinstance(end_tokens, list) or len(end_tokens) > _MOST_TOKENS:
            raise UserError(f"{name}: end_tokens must be a list of at most {_MOST_TOKENS} tokens")
        return cls(
            roles={role: token for role in ROLES if (token := reader.token(f"{role}_token")) is not None},
            end_tokens=tuple(spelling(token, f"{name}: end_tokens") for token in end_tokens),
            start_of_output_token=reader.token("start_of_output_token"),
            chat_template=reader.chat_template(),
            add_bos=reader.flag("add_bos_token"),
            add_eos=reader.flag("add_eos_token"),
            padding_side=reader.padding_side(),
            model_max_length=reader.max_length(),
        )

    def to_json(self) -> dict[str, Any]:
        """The values of a tokenizer_config.json, which transformers reads too."""
        values: dict[str, Any] = {f"{role}_token": token for role, token in self.roles.items()}
        optional = {
            "end_tokens": list(self.end_tokens),
            "start_of_output_token": self.start_of_output_token,
            "chat_template": self.chat_template,
            "add_bos_token": self.add_bos,
            "add_eos_token": self.add_eos,
            "model_max_length": self.model_max_length,
        }
        values |= {key: value for key, value in optional.items() if value}
        # Other classes make transformers rebuild the parts of tokenizer.json and lose some.
        return values | {"padding_side": self.padding_side, "tokenizer_class": "PreTrainedTokenizerFast"}

    def named(self) -> dict[str, str]:
        """All tokens by the key that names them."""
        found = {f"{role}_token": token for role, token in self.roles.items()}
        found |= {f"end_tokens[{number}]": token for number, token in enumerate(self.end_tokens)}
        return found | ({"start_of_output_token": self.start_of_output_token} if self.start_of_output_token else {})


def spelling(token: Any, name: str) -> str:
    """The spelling of a token that is given as a string or as an object with a "content".

    Raises:
      UserError: if it is neither, empty or implausibly long.
    """
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str) or not 0 < len(token) <= _LONGEST_TOKEN:
        raise UserError(f"{name} must be a token, a string of 1 to {_LONGEST_TOKEN} characters, or null: correct it")
    if not token.isascii() and any("\ud800" <= character <= "\udfff" for character in token):
        raise UserError(f"{name} must be text, but it holds half a surrogate pair: correct it")
    return token


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Values of a tokenizer_config.json, checked one by one."""

    values: Mapping[str, Any]
    name: str

    def token(self, key: str) -> str | None:
        value = self.values.get(key)
        return None if value is None else spelling(value, f"{self.name}: {key}")

    def flag(self, key: str) -> bool:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise UserError(f"{self.name}: {key} must be true or false, got {value!r:.50}")
        return bool(value)

    def padding_side(self) -> str:
        value = self.values.get("padding_side") or "right"
        if value not in ("left", "right"):
            raise UserError(f"{self.name}: padding_side must be left or right, got {value!r:.50}")
        return value

    def max_length(self) -> int | None:
        value = self.values.get("model_max_length")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UserError(f"{self.name}: model_max_length must be a positive number, got {value!r:.50}")
        return int(value) if value < _LONGEST_SEQUENCE else None

    def chat_template(self) -> str | None:
        value = self.values.get("chat_template")
        if isinstance(value, list):  # several templates by name
            named = {each.get("name"): each.get("template") for each in value if isinstance(each, dict)}
            value = named.get("default", "")
        if value is None:
            return None
        if not isinstance(value, str) or len(value) > _LONGEST_TEMPLATE:
            limit = f"at most {_LONGEST_TEMPLATE:,} characters"
            raise UserError(f"{self.name}: chat_template must be a Jinja template of {limit}")
        return value or None
