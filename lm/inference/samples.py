"""Samples of a trained model, to see what it learned."""

from pathlib import Path

from lm.files import write_atomically
from lm.inference.language_models import LanguageModel
from lm.runs.config import SamplesConfig


def write_samples(model: LanguageModel, config: SamplesConfig, path: Path) -> str:
    """Continues each prompt, writes the texts to a file and returns them."""
    texts = [
        f"--- sample {number}, checkpoint {model.step} ---\n{written.prompt}{written.text}\n"
        for number, written in enumerate(model.generate(config.prompts, config.sampling), 1)
    ]
    write_atomically(path, "\n".join(texts))
    return "\n".join(texts)
