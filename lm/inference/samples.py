"""Text that a trained model writes, so that a person can see what it learned."""

from collections.abc import Sequence
from pathlib import Path

import jax

from lm.data.tokenizers import Tokenizer
from lm.decoding.sample import generate
from lm.errors import UserError
from lm.files import write_atomically
from lm.models.decoder_lm import DecoderLM
from lm.runs.config import SamplesConfig
from lm.runs.state import TrainState


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts, each at the beginning of a document.

    Raises:
      UserError: for an empty prompt where the tokenizer has no token that begins a document.
    """
    start = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    encoded = [start + tokenizer.encode(prompt) for prompt in prompts]
    if not all(encoded):
        raise UserError("an empty prompt needs a tokenizer with an end-of-text token: give some text to continue")
    return encoded


def write_samples(model: DecoderLM, state: TrainState, tokenizer: Tokenizer, config: SamplesConfig, path: Path) -> str:
    """Continues each prompt, writes the texts to a file and returns them."""
    params = jax.device_get(state.evaluation_params)
    prompts = [prompt for prompt in config.prompts for _ in range(config.sampling.samples)]
    # The mesh is for training; a few samples are made on one device.
    one_device = DecoderLM(model.config)
    encoded = encode_prompts(tokenizer, prompts)
    generations = generate(one_device, params, encoded, config.sampling, tokenizer.end_of_text, tokenizer.vocab_size)
    texts = [
        f"--- sample {number} ---\n{prompt}{tokenizer.decode(generation.tokens.tolist())}\n"
        for number, (prompt, generation) in enumerate(zip(prompts, generations, strict=True), 1)
    ]
    write_atomically(path, "\n".join(texts))
    return "\n".join(texts)
