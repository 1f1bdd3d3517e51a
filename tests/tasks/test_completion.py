"""Completion of prompts: the loss is on the completion alone."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from lm.decoding.sample import generate
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
from lm.tasks.completion import Completion
from lm.tasks.supervised import TaskConfig
from tests.tasks.tiny_pairs import END, MAX_LENGTH, TOKENIZER, VOCAB, make_batch, random_params, tiny_model, unbatch

CONFIG = TaskConfig(name="completion", max_target_length=6, beams=4, length_penalty=2.0, prefix="fade ")
TASK = Completion(tiny_model("decoder", positions="rotary"), CONFIG, TOKENIZER)
ROWS = [
    {"prompt": prompt, "completion": completion, "place": f"prompts.jsonl:{line}"}
    for line, (prompt, completion) in enumerate([("abc", " fe"), ("d", "abcd"), ("bad face", "a")], start=1)
]
PARAMS = random_params(TASK)


@pytest.fixture(scope="module")
def batch():
    return make_batch(TASK, TASK.encode(ROWS).examples, {"T": 14}, filler=1)


@pytest.fixture(scope="module")
def outputs(batch):
    return jax.device_get(jax.jit(TASK.predict)(PARAMS, batch))


def test_a_completion_follows_its_prompt_at_once():
    example = TASK.encode(ROWS).examples[0]
    prompt, completion = TOKENIZER.encode("abc"), TOKENIZER.encode(" fe")
    np.testing.assert_array_equal(example["tokens"], [END, *prompt, *completion])
    np.testing.assert_array_equal(example["targets"], [*prompt, *completion, END])
    np.testing.assert_array_equal(example["weights"], [0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(example["tokens"][: example["source_length"]], [END, *prompt])


def test_of_a_long_prompt_the_end_is_kept_and_there_is_room_to_complete_it():
    rows = [*ROWS, ROWS[0] | {"prompt": "fed " * 5 + "abc", "place": "prompts.jsonl:9"}]
    with pytest.raises(UserError) as caught:
        TASK.encode(rows)
    message = "prompts.jsonl:9: the prompt has 23 tokens, but config.model.max_length=16 leaves room for 10"
    assert message in str(caught.value)
    cutting = dataclasses.replace(TASK, config=dataclasses.replace(CONFIG, truncate=True))
    examples, cut, _ = cutting.encode(rows)
    assert cut == 1
    length = examples[3]["source_length"]
    np.testing.assert_array_equal(examples[3]["tokens"][1:length], TOKENIZER.encode("ed fed abc"))
    assert length + CONFIG.max_target_length - 1 == MAX_LENGTH


def test_a_completion_needs_a_decoder():
    with pytest.raises(UserError, match=r"config\.model\.architecture=decoder, got encoder_decoder"):
        Completion(tiny_model("encoder_decoder"), CONFIG, TOKENIZER)


def test_the_loss_covers_only_the_completion(batch):
    def loss(targets):
        return TASK.loss(PARAMS, batch | {"targets": targets}, None)

    loss = jax.jit(loss)
    total, sums = loss(batch["targets"])
    assert sums["weight"] == sum(len(row["completion"]) + 1 for row in ROWS)
    others = np.where(batch["weights"] == 0, (batch["targets"] + 1) % VOCAB, batch["targets"])
    chex.assert_trees_all_equal(loss(others), (total, sums))
    # Every token of a completion counts, and its end.
    for row, column in np.argwhere(batch["weights"]):
        others = batch["targets"].copy()
        others[row, column] = (others[row, column] + 1) % VOCAB
        assert abs(loss(others)[0] - total) > 1e-3


def test_completions_are_greedy_and_see_only_the_prompt(batch, outputs):
    prompts = [[END, *TOKENIZER.encode(row["prompt"])] for row in ROWS]
    sampling = SamplingConfig(max_new_tokens=6, temperature=0.0)
    expected = generate(TASK.model, PARAMS, prompts, sampling, (END,), vocab_size=VOCAB)
    for output, generation in zip(unbatch(outputs, 3), expected, strict=True):
        length = output["lengths"]
        np.testing.assert_array_equal(output["generated"][:length], generation.tokens)
        np.testing.assert_allclose(output["log_probs"][:length], generation.log_probs, rtol=1e-4, atol=1e-5)


def test_results(outputs):
    results = TASK.results(ROWS, [], unbatch(outputs, 3))
    assert list(results.metrics)[:2] == ["exact_match", "perplexity"]
    np.testing.assert_allclose(
        results.metrics["perplexity"].value, np.exp(outputs["nll"].sum() / outputs["tokens"].sum()), rtol=1e-6
    )
    first = results.records[0]
    assert first.keys() == {"prompt", "completion", "predicted", "confidence"}
    length = outputs["lengths"][0]
    np.testing.assert_allclose(first["confidence"], np.exp(outputs["log_probs"][0, :length].mean()), rtol=1e-5)
    assert first["predicted"] == TOKENIZER.decode(outputs["generated"][0, :length])
