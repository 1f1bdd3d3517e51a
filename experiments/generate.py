"""Continues a text with a trained model, with the log-probability of each token.

python -m experiments.generate --workdir=runs/quickstart --prompt="def main(" --config.temperature=0.8
python -m experiments.generate --workdir=runs/multi30k --prompt="Ein Hund rennt." --beams=4
python -m experiments.generate --workdir=runs/smollm2 --chat --system="Answer briefly."

The text goes to standard output, after the prompt if it continues it, piece by piece on a terminal. With --json each
continuation is a JSON object with its tokens and, for each token, the model's own log-probability, the calibrated one
with --calibrator, and that under the sampling distribution. With --chat a model with a chat template answers messages:
/reset begins a new conversation, Ctrl-C stops a reply, /exit or Ctrl-D ends.
"""

import contextlib
import json
import sys
from typing import Any

from absl import flags

from lm.command_line import define_config, run
from lm.configuration import differences
from lm.console import Console
from lm.data.chat import Chat
from lm.decoding.beam_search import BeamSearchConfig
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
from lm.inference.conversation import Conversation
from lm.inference.language_models import GeneratedText, LanguageModel
from lm.inference.load import load
from lm.inference.task_model import TaskModel


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config(values, SamplingConfig)
    flags.DEFINE_string("workdir", None, "Directory of a run.", flag_values=values)
    flags.DEFINE_multi_string("prompt", [""], "Text to continue; may be given several times.", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "Which checkpoint: best, last or a step.", flag_values=values)
    flags.DEFINE_string(
        "calibrator",
        None,
        "Name of a calibrator in the run's calibration/, such as temperature, or path of one.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "beams", 0, "Search for the likeliest text with this many beams; 0: sample.", flag_values=values
    )
    flags.DEFINE_bool("json", False, "One JSON object per continuation, with log-probabilities.", flag_values=values)
    flags.DEFINE_bool("chat", False, "Read messages and answer them.", flag_values=values)
    flags.DEFINE_string("system", "", "With --chat: what the model is told first.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Generates and prints."""
    if not values.workdir:
        raise UserError("--workdir is missing: name the directory of a run")
    how = _how(values)
    model = load(values.workdir, values.checkpoint, values.calibrator)
    if not isinstance(model, LanguageModel):
        # Other models say themselves what they are for.
        if isinstance(model, TaskModel):
            raise UserError(f"this run is {model.kind}, which writes no text: use experiments.predict")
        model.generate(values.prompt, how)
        return
    if values.chat:
        chat(Conversation(model, Chat.of(model.tokenizer), how, values.system))
        return
    for number, prompt in enumerate(values.prompt, 1):
        if unknown := model.tokenizer.unknown_share([prompt]):
            Console(stderr=True).print(f"(!) {unknown:.0%} of prompt {number} is unknown to the tokenizer")
    alone = isinstance(how, SamplingConfig) and len(values.prompt) == how.samples == 1
    if alone and sys.stdout.isatty() and not values.json:
        print_pieces(model, values.prompt[0], how)
        return
    for number, written in enumerate(model.generate(values.prompt, how)):
        if values.json:
            print(json.dumps(as_json(written, model.step)))
        else:
            print(("\n---\n" if number else "") + (written.prompt if written.continues else "") + written.text)


def _how(values: flags.FlagValues) -> SamplingConfig | BeamSearchConfig:
    """The settings of generation, checked."""
    how: SamplingConfig = values.config
    if values.system and not values.chat:
        raise UserError("--system has no effect without --chat: add it, or leave --system out")
    if values.chat and (values.beams or values.json or how.samples > 1 or values.prompt != [""]):
        raise UserError("--chat reads messages and samples one reply: leave out --prompt, --beams, --json and samples")
    if not values.beams:
        return how
    used = SamplingConfig(max_new_tokens=how.max_new_tokens)
    if ignored := differences(used, how):
        raise UserError(f"config.{next(iter(ignored))} has no effect with --beams, which samples nothing: leave it out")
    return BeamSearchConfig(values.beams, how.max_new_tokens)


def print_pieces(model: LanguageModel, prompt: str, how: SamplingConfig) -> None:
    """Prints a text while it is written; Ctrl-C stops it."""
    if model.continues:
        print(prompt, end="", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        for piece in model.stream(prompt, how):
            print(piece, end="", flush=True)
    print()


def chat(conversation: Conversation) -> None:
    """Reads messages from standard input until its end, and prints replies."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # lets `input` edit and repeat lines
    mark = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            message = input(mark).strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print()
            continue
        if message == "/exit":
            return
        if message == "/reset":
            conversation.reset()
        elif message:
            answer(conversation, message)


def answer(conversation: Conversation, message: str) -> None:
    """Prints a reply while it is written; Ctrl-C stops it."""
    reply = conversation.reply(message)
    try:
        for piece in reply:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pass
    except UserError as error:
        print(f"(!) {error}", end="", file=sys.stderr, flush=True)  # it is no reply
    finally:
        reply.close()  # what was printed is the reply
    print()


def as_json(written: GeneratedText, step: int) -> dict[str, Any]:
    """What --json prints for a continuation; without a calibrator or sampling their keys are left out."""
    arrays = {
        "log_probs": written.log_probs,
        "calibrated_log_probs": written.calibrated_log_probs,
        "sampling_log_probs": written.sampling_log_probs,
    }
    return {
        "prompt": written.prompt,
        "text": written.text,
        "checkpoint": step,
        "tokens": written.tokens.tolist(),
        **{name: [float(value) for value in array] for name, array in arrays.items() if array is not None},
        "finished": written.finished,
        "stopped_by": written.stopped_by,
    }


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
