"""Continues a text with a trained model, and says how sure the model was of each token.

python -m experiments.generate --workdir=runs/quickstart --prompt="def main(" --config.temperature=0.8

The text goes to standard output. With --json each continuation is a JSON object with its tokens and, for each token,
the model's own log-probability, the calibrated one with --calibrator, and that of the distribution it was sampled from.
"""

import json
from pathlib import Path

from absl import flags

from lm.calibration.calibrators import Fitted
from lm.command_line import define_config, run
from lm.configuration import from_config_dict, to_config_dict
from lm.decoding.continuation import Continuation
from lm.decoding.sample import generate
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
from lm.inference.samples import encode_prompts
from lm.models.decoder_lm import DecoderLM
from lm.runs.trained_run import load_run
from lm.runs.work_directory import WorkDirectory


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command line."""
    define_config(values, to_config_dict(SamplingConfig()))
    flags.DEFINE_string("workdir", None, "Directory of a pretraining run.", flag_values=values)
    flags.DEFINE_multi_string("prompt", [""], "Text to continue; may be given several times.", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "Which checkpoint: best, last or a step.", flag_values=values)
    flags.DEFINE_string(
        "calibrator", None, "Name of a calibrator in the run's calibration/, such as temperature.", flag_values=values
    )
    flags.DEFINE_bool("json", False, "One JSON object a continuation, with log-probabilities.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Generates and prints."""
    if not values.workdir:
        raise UserError("--workdir is missing: name the directory of a pretraining run")
    config = from_config_dict(SamplingConfig, values.config)
    directory = WorkDirectory(Path(values.workdir))
    calibrator = Fitted.load(directory.calibration / f"{values.calibrator}.json") if values.calibrator else None
    trained = load_run(directory, values.checkpoint)
    if trained.config.model.architecture != "decoder" or not hasattr(trained.task, "train_batches"):
        raise UserError(f"--workdir={values.workdir} holds no decoder that was pretrained: only those continue texts")
    model, params, tokenizer, step = DecoderLM(trained.config.model), trained.params, trained.tokenizer, trained.step
    if calibrator is not None and calibrator.classes != model.config.vocab_size:
        raise UserError(
            f"--calibrator={values.calibrator} is for {calibrator.classes} classes, not for this model's vocabulary of "
            f"{model.config.vocab_size}: choose one that was fitted to this run's own predictions"
        )
    prompts = [prompt for prompt in values.prompt for _ in range(config.samples)]
    encoded = encode_prompts(tokenizer, prompts)
    calibrate = None if calibrator is None else calibrator.apply
    continuations = generate(model, params, encoded, config, tokenizer.end_of_text, tokenizer.vocab_size, calibrate)
    for number, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        text = tokenizer.decode(continuation.tokens.tolist())
        if values.json:
            print(json.dumps({"prompt": prompt, "text": text, "checkpoint": step, **as_lists(continuation)}))
        else:
            print(("\n---\n" if number else "") + prompt + text)


def as_lists(continuation: Continuation) -> dict[str, list]:
    """A continuation as JSON can hold it."""
    arrays = {
        "tokens": continuation.tokens,
        "log_probs": continuation.log_probs,
        "calibrated_log_probs": continuation.calibrated_log_probs,
        "sampling_log_probs": continuation.sampling_log_probs,
    }
    return {name: array.tolist() for name, array in arrays.items() if array is not None}


if __name__ == "__main__":
    run(main, define_flags, __doc__.strip())
