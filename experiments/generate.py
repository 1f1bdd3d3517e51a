"""Continues a text with a trained model, with the log-probability of each token.

python -m experiments.generate --workdir=runs/quickstart --prompt="def main(" --config.temperature=0.8
python -m experiments.generate --workdir=runs/multi30k --prompt="Ein Hund rennt." --beams=4

The text goes to standard output, after the prompt if it continues it. With --json each continuation is a JSON object
with its tokens and, for each token, the model's own log-probability, the calibrated one with --calibrator, and that
under the sampling distribution.
"""

import json
from typing import Any

from absl import flags

from lm.command_line import define_config, run
from lm.configuration import differences
from lm.console import Console
from lm.decoding.beam_search import BeamSearchConfig
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
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


def main(values: flags.FlagValues) -> None:
    """Generates and prints."""
    if not values.workdir:
        raise UserError("--workdir is missing: name the directory of a run")
    how: SamplingConfig | BeamSearchConfig = values.config
    if values.beams:
        used = SamplingConfig(max_new_tokens=how.max_new_tokens)
        if ignored := differences(used, how):
            raise UserError(
                f"config.{next(iter(ignored))} has no effect with --beams, which samples nothing: leave it out"
            )
        how = BeamSearchConfig(values.beams, how.max_new_tokens)
    model = load(values.workdir, values.checkpoint, values.calibrator)
    if isinstance(model, TaskModel) and not isinstance(model, LanguageModel):
        raise UserError(f"this run is {model.kind}, which writes no text: use experiments.predict")
    for number, prompt in enumerate(values.prompt, 1):
        if unknown := model.tokenizer.unknown_share([prompt]):
            Console(stderr=True).print(f"(!) {unknown:.0%} of prompt {number} is unknown to the tokenizer")
    for number, written in enumerate(model.generate(values.prompt, how)):
        if values.json:
            print(json.dumps(as_json(written, model.step)))
        else:
            print(("\n---\n" if number else "") + (written.prompt if written.continues else "") + written.text)


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
    }


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
