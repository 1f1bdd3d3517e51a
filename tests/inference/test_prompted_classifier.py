"""Prompted models: their scores equal a whole pass without a cache, whatever stands beside a row.

Axes: T positions, V vocabulary.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from scipy import special

from lm.data.config import TokenizerConfig
from lm.data.tokenizers import train_tokenizer
from lm.errors import UserError
from lm.inference.load import in_use, prompt_model
from lm.modules.config import ModelConfig
from lm.objectives.objective import ObjectiveConfig
from lm.objectives.registry import make_task, special_tokens
from lm.prompting.config import PromptConfig
from lm.prompting.prompts import Prompting
from lm.runs.config import PretrainConfig
from lm.runs.prompted_run import PromptedRun, PromptedRunConfig
from lm.runs.trained_run import TrainedRun

CLASSES = ("bad", "good")
SHOTS = tuple({"text": f"film {n}", "label": CLASSES[n % 2], "place": ""} for n in range(3))
ROWS = [
    {"text": text, "label": CLASSES[len(text) % 2], "place": f"row {number}"}
    for number, text in enumerate(["so so", "dull", "a film that I saw twice", "it", "x y z", "what a film"])
]
OBJECTIVES = {"decoder": "causal", "encoder": "masked", "encoder_decoder": "denoising"}
ITEM = {"decoder": "{text}:", "encoder": "{text} was {answer}, I say", "encoder_decoder": "{text}:"}


TEXTS = ["so so dull a film that I saw twice it x y z was bad good great , I say : 1 2 3"] * 3


def random_model(architecture, **tokenizer):
    objective = ObjectiveConfig(name=OBJECTIVES[architecture])
    tokenizer = train_tokenizer(TokenizerConfig(**tokenizer), TEXTS).with_special_tokens(special_tokens(objective))
    shape = ModelConfig(
        architecture=architecture, layers=2, width=16, heads=2, max_length=120, vocab_size=tokenizer.vocab_size + 3
    )
    task = make_task(objective, shape, tokenizer, None)
    params = jax.tree.map(lambda leaf: 3 * leaf, jax.jit(task.init)(jax.random.key(1)))
    run = TrainedRun(PretrainConfig(model=shape, objective=objective), tokenizer, (), task, params, 0)
    return in_use(run)


@pytest.fixture(scope="module")
def models():
    """A random model of each architecture, with a tokenizer of whole words, or of bytes for the decoder."""
    kinds = {"decoder": "bytes", "encoder": "words", "encoder_decoder": "words"}
    return {architecture: random_model(architecture, kind=kind, vocab_size=60) for architecture, kind in kinds.items()}


def prompted(model, shots=SHOTS, classes=CLASSES, own_options=False, **config):
    config = PromptConfig(**{"item": ITEM[model.config.model.architecture], "separator": "\n", **config})
    prompting = Prompting(config, classes, own_options, shots)
    return prompt_model(PromptedRun(PromptedRunConfig(prompt=config), prompting, ""), model)


@functools.cache
def compiled(model):
    return jax.jit(model.model.apply)


def whole_pass(model, prompt, answer):
    """log p(answer | prompt) from one pass over all tokens."""
    tokenizer, architecture = model.tokenizer, model.config.model.architecture
    if architecture == "decoder":
        read = tokenizer.with_start(tokenizer.encode(prompt.before))
        answer_ids = tokenizer.encode(answer)
        # Padding comes last, where no token sees it; one length compiles once.
        inputs, first = (np.resize([*read, *answer_ids], 120),), len(read) - 1
    elif architecture == "encoder_decoder":
        read = [*tokenizer.encode(prompt.before + prompt.after), tokenizer.end_of_text]
        answer_ids = [*tokenizer.encode(answer), tokenizer.end_of_text]
        inputs, first = (read, [tokenizer.start_of_output, *answer_ids[:-1]]), 0
    else:
        answer_ids = tokenizer.encode(answer)
        before = [tokenizer.special_id("[CLS]"), *tokenizer.encode(prompt.before)]
        ids = [*before, *[model.mask] * len(answer_ids), *tokenizer.encode(prompt.after), tokenizer.special_id("[SEP]")]
        inputs, first = (ids, [1] * len(ids)), len(before)
    logits_TV = np.array(compiled(model)({"params": model.params}, *(np.array([ids]) for ids in inputs))[0])
    logits_TV = logits_TV[first : first + len(answer_ids), : tokenizer.vocab_size].astype(np.float64)
    return special.log_softmax(logits_TV, axis=1)[np.arange(len(answer_ids)), answer_ids].sum()


@pytest.mark.parametrize(
    "architecture",
    ["decoder", *(pytest.param(name, marks=pytest.mark.slow) for name in ("encoder", "encoder_decoder"))],
)
def test_scores_equal_a_whole_pass(models, architecture):
    model = prompted(models[architecture], answers=("good= good| great",))
    scores = model.score(ROWS)
    for row, logits, mass in zip(ROWS, scores.logits_NC, scores.mass_N, strict=True):
        prompt = model.prompting.prompt(row)
        expected = np.array(
            [special.logsumexp([whole_pass(model.scorer, prompt, word) for word in words]) for words in prompt.answers]
        )
        np.testing.assert_allclose(logits, special.log_softmax(expected), atol=2e-5)
        np.testing.assert_allclose(mass, np.exp(expected).sum(), rtol=1e-4)


@pytest.mark.parametrize(
    "architecture", ["decoder", pytest.param("encoder", marks=pytest.mark.slow), "encoder_decoder"]
)
def test_neighbours_and_order_change_nothing(models, architecture):
    model = prompted(models[architecture])
    whole = model.score(ROWS).logits_NC
    np.testing.assert_allclose(model.score(ROWS[::-1]).logits_NC[::-1], whole, atol=2e-5)
    alone = np.concatenate([model.score([row]).logits_NC for row in ROWS])
    np.testing.assert_allclose(alone, whole, atol=2e-5)


def test_a_score_is_per_token_or_per_byte_or_relative_to_the_premise(models):
    model, words = models["decoder"], ("1= xyz", "2=é")
    found = {
        score: prompted(model, (), ("1", "2"), answers=words, score=score, premise="so:").score(ROWS[:2]).logits_NC
        for score in ("sum", "mean", "bytes", "pmi")
    }
    for number, row in enumerate(ROWS[:2]):
        prompt = prompted(model, (), ("1", "2"), answers=words).prompting.prompt(row)
        log_p = np.array([whole_pass(model, prompt, word) for word in (" xyz", "é")])
        premise = dataclasses.replace(prompt, before="so:")
        before = np.array([whole_pass(model, premise, word) for word in (" xyz", "é")])
        for score, expected in {
            "sum": log_p,
            "mean": log_p / [4, 2],
            "bytes": log_p / [3, 2],
            "pmi": log_p - before,
        }.items():
            np.testing.assert_allclose(found[score][number], special.log_softmax(expected), atol=2e-5)


def test_options_of_rows_that_lack_some_have_probability_zero(models):
    rows = [
        {"text": "so", "options": ["a", "bc"], "label": "a", "place": "row 1"},
        {"text": "so", "options": ["a", "bc", "d"], "label": "2", "place": "row 2"},
    ]
    model = prompted(models["decoder"], (), ("A", "B", "C"), True)
    scores = model.score(rows)
    assert np.isneginf(scores.logits_NC[0, 2])
    assert np.isfinite(scores.logits_NC[1]).all()
    measured = model.measured(rows, scores)
    np.testing.assert_array_equal(measured.results.predictions.labels_N, [0, 2])
    prompt = model.prompting.prompt(rows[1])
    expected = special.log_softmax([whole_pass(model.scorer, prompt, word) for word in (" a", " bc", " d")])
    np.testing.assert_allclose(scores.logits_NC[1], expected, atol=2e-5)


def test_a_row_that_is_too_long_is_cut_where_that_is_allowed(models):
    long = {"text": "so " * 100, "label": "bad", "place": "row 9"}
    model = prompted(models["decoder"])
    with pytest.raises(UserError, match=r"row 9: the prompt has 3\d\d tokens.*121.*fewer shots.*truncate=True"):
        model.score([long])
    scores = model.score([ROWS[0], long], truncate=True)
    assert scores.is_cut_N.tolist() == [False, True]
    assert np.isfinite(scores.logits_NC).all()
    # As much is kept as fits: the answer needs five tokens, and its last is not read.
    room = 121 - len(model.scorer.prompt_tokens([model.prompting.prompt({**long, "text": ""}).before])[0]) - 5
    kept = {**long, "text": long["text"][:room].rstrip()}
    np.testing.assert_allclose(scores.logits_NC[1], model.score([kept]).logits_NC[0], atol=2e-5)
    with pytest.raises(UserError, match="row 9"):
        prompted(models["decoder"], SHOTS * 5).score([long], truncate=True)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (("bad= a", "good= ab"), r"' a' begins ' ab'.*end them all alike, as in ' a\\n'"),
        (("bad= a", "good= a"), "the same tokens"),
        (("bad= a| b", "good= c| b"), "the same tokens"),
    ],
)
def test_answers_that_do_not_exclude_each_other_are_refused(models, answers, said):
    with pytest.raises(UserError, match=said):
        prompted(models["decoder"], answers=answers).check(ROWS)


def test_white_space_that_belongs_to_the_answer_is_refused_in_the_prompt():
    model = random_model("decoder", kind="bpe", vocab_size=300)
    prompted(model, item="{text} was").check(ROWS)
    said = r"after 'so so was ' the answer 'I' changes the tokens of the prompt.*without white space before the answer"
    with pytest.raises(UserError, match=said):
        prompted(model, (), item="{text} was ", answers=("bad=I", "good=good")).check(ROWS)


def test_an_answer_may_begin_another_where_its_end_counts(models):
    prompted(models["encoder_decoder"], answers=("bad=a", "good=a film")).check(ROWS)
    prompted(models["encoder"], answers=("bad=a", "good=a film")).check(ROWS)


def test_answers_without_tokens_are_refused(models):
    with pytest.raises(UserError, match="makes no tokens of"):
        prompted(models["encoder"], answers=("bad=\u200b\u200b",)).check(ROWS)


def test_an_encoder_has_no_chat(models):
    with pytest.raises(UserError, match=r"config\.prompt\.chat: a masked language model has no conversations"):
        prompted(models["encoder"], chat=True).check(ROWS)


def test_the_premise_is_scored_without_the_row(models):
    model = prompted(models["decoder"])
    (scores,) = model.premise_scores(model.rows_of_texts([""]))
    premise = model.prompting.premise(ROWS[0])
    expected = [whole_pass(model.scorer, premise, word) for word in (" bad", " good")]
    np.testing.assert_allclose(scores.log_probs, expected, atol=2e-5)
    # What is measured relative to the premise has nothing left of it.
    np.testing.assert_array_equal(scores.normalized("pmi"), [0, 0])


def test_results_hold_the_label_mass(models):
    model = prompted(models["decoder"])
    found = model.measure(ROWS)
    mass = model.score(ROWS).mass_N
    assert found.results.metrics["label_mass"].value == pytest.approx(mass.mean())
    assert [record["label_mass"] for record in found.results.records] == pytest.approx(mass.tolist())
    assert found.results.predictions.model == model.digest != model.scorer.digest
    (first, *_) = model.predict([ROWS[0]["text"]])
    assert first.to_json()["label_mass"] == pytest.approx(mass[0])
