"""Samples of a trained model, to see what it learned."""

from pathlib import Path

from lm.data.files import check_surrogates
from lm.errors import UserError
from lm.files import write_atomically
from lm.inference.language_models import LanguageModel
from lm.runs.config import SamplesConfig


def check_samples(model: LanguageModel, config: SamplesConfig) -> None:
    """Checks that a model can read the prompts, without its parameters.

    Raises:
      UserError: if not.
    """
    try:
        for prompt in config.prompts:
            check_surrogates(prompt, prompt, "a prompt")
        model.prompt_tokens(config.prompts)
    except UserError as error:
        raise UserError(f"config.samples.prompts: {error}") from error


def write_samples(model: LanguageModel, config: SamplesConfig, path: Path) -> str:
    """Continues each prompt, writes the texts to a file and returns them."""
    texts = [
        f"--- sample {number}, checkpoint {model.step} ---\n{written.prompt}{written.text}\n"
        for number, written in enumerate(model.generate(config.prompts, config.sampling), 1)
    ]
    write_atomically(path, "\n".join(texts))
    return "\n".join(texts)
