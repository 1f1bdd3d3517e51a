"""Streamed text equals the text that is written at once; stop strings; conversations that keep their cache."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import generate as command
from lm.data.config import TokenizerConfig
from lm.data.tokenizers import train_tokenizer
from lm.decoding.sampling import SamplingConfig
from lm.decoding.stop_strings import before_stop, certain_length
from lm.errors import UserError
from lm.inference.conversation import Conversation
from lm.inference.language_models import LanguageModel
from lm.models.build import make_language_model
from lm.modules.config import ModelConfig

TOKENIZER = train_tokenizer(TokenizerConfig(kind="bytes"), lambda split: [])
SHAPE = ModelConfig(vocab_size=TOKENIZER.vocab_size, layers=1, width=16, heads=2, max_length=64, positions="rotary")
HOW = SamplingConfig(max_new_tokens=24, temperature=0.7)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a language model needs of a run."""

    config: object
    tokenizer: object
    params: object
    task: object
    classes: tuple = ()
    step: int = 0


@dataclasses.dataclass(frozen=True)
class Settings:
    model: ModelConfig
    training: object = None


@dataclasses.dataclass(frozen=True)
class Task:
    model: object


@pytest.fixture(scope="module")
def model():
    network = make_language_model(SHAPE)
    params = jax.jit(network.init)(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))["params"]
    params = jax.tree.map(lambda leaf: leaf * 10, params)
    return LanguageModel(Run(Settings(SHAPE), TOKENIZER, params, Task(network)))


class Template:
    """Each message on a line of its own."""

    def render(self, messages, add_generation_prompt=True):
        lines = [f"{message['role'][0]}: {message['content']}\n" for message in messages]
        return TOKENIZER.encode("".join(lines) + "a: " * add_generation_prompt)


@pytest.mark.parametrize("seed", range(3))
def test_pieces_make_up_the_text_that_is_written_at_once(model, seed):
    """Also beyond the window, and where characters have several bytes."""
    how = dataclasses.replace(HOW, seed=seed, max_new_tokens=80)
    (whole,) = model.generate(["ünd"], how)
    stream = model.stream("ünd", how)
    pieces = list(stream)
    assert len(pieces) > 3
    assert "".join(pieces) == whole.text
    np.testing.assert_array_equal(stream.continuation.tokens, whole.tokens)
    # Bytes that are not text stay replacement characters, but a character is never given in halves.
    assert all(piece for piece in pieces)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_stop_string_cuts_the_text_across_tokens(model, length):
    (whole,) = model.generate(["a"], HOW)
    place = next(n for n in range(9, len(whole.text)) if "\ufffd" not in whole.text[n : n + length])
    stop = whole.text[place : place + length]
    how = dataclasses.replace(HOW, stop=("never there", stop))
    (cut,) = model.generate(["a"], how)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.stopped_by == stop
    assert not cut.finished
    text = TOKENIZER.decode(cut.tokens.tolist())
    assert stop in text
    assert stop not in TOKENIZER.decode(cut.tokens[:-1].tolist())
    assert cut.tokens.size == cut.log_probs.size == cut.sampling_log_probs.size
    assert "".join(model.stream("a", how)) == cut.text
    assert whole.stopped_by is None


def test_of_stop_strings_the_first_in_the_text_counts():
    assert before_stop("one two three", ["three", "two"]) == ("one ", "two")
    assert before_stop("a\n\nb", ["\n", "\n\n"]) == ("a", "\n\n")
    assert before_stop("abc", ["d"]) is None


def test_what_may_become_a_stop_string_is_not_certain():
    assert certain_length("abc", ["cd"]) == 2
    assert certain_length("abc", ["bcd", "cde"]) == 1
    assert certain_length("abc", ["abd"]) == 3
    assert certain_length("ab\ufffd\ufffd", []) == 2


def test_a_conversation_reads_only_what_is_new_and_says_the_same(model):
    how = dataclasses.replace(HOW, max_new_tokens=5)
    conversation, template = Conversation(model, Template(), how, system="s"), Template()
    for message in ("hi", "yes"):
        before = list(conversation.messages)
        reply = "".join(conversation.reply(message))
        tokens = template.render([*before, {"role": "user", "content": message}])
        assert reply == "".join(model.stream_tokens(tokens, how))
    assert [message["role"] for message in conversation.messages] == ["system", *["user", "assistant"] * 2]
    assert conversation._held.tokens[: len(tokens)] == tokens
    conversation.reset()
    assert len(conversation.messages) == 1


def test_a_reply_that_is_stopped_is_part_of_the_conversation(model):
    conversation = Conversation(model, Template(), dataclasses.replace(HOW, max_new_tokens=30))
    reply = conversation.reply("hi")
    first = next(reply)
    reply.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": first}
    expected = "".join(
        model.stream_tokens(Template().render([*conversation.messages, {"role": "user", "content": "go"}]), HOW)
    )
    conversation._how = HOW
    assert "".join(conversation.reply("go")) == expected


def test_a_conversation_beyond_the_window_is_refused_and_unchanged(model):
    conversation = Conversation(model, Template(), HOW)
    with pytest.raises(UserError, match=r"the conversation has 7\d tokens, and config\.model\.max_length=64"):
        next(conversation.reply("x" * 70))
    assert conversation.messages == []


def test_the_chat_loop(model, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\n/reset\nhello\n" + "y" * 99 + "\n/exit\nnever read\n"))
    command.chat(Conversation(model, Template(), dataclasses.replace(HOW, max_new_tokens=4)))
    printed = capsys.readouterr()
    assert printed.err.startswith("(!) the conversation has")
    replies = printed.out.removesuffix("\n")  # that of the refused one is empty
    first, second = replies[: len(replies) // 2], replies[len(replies) // 2 :]
    assert first == second != "", "the same message begins both conversations"


def test_ctrl_c_stops_a_reply_only(model, monkeypatch, capsys):
    conversation = Conversation(model, Template(), dataclasses.replace(HOW, max_new_tokens=30))

    def interrupted(pieces):
        yield next(pieces)
        raise KeyboardInterrupt

    reply = conversation.reply
    monkeypatch.setattr(conversation, "reply", lambda message: interrupted(reply(message)))
    command.answer(conversation, "hi")
    assert capsys.readouterr().out.strip("\n") == conversation.messages[-1]["content"].strip("\n") != ""
