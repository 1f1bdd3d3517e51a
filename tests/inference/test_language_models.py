"""Models that write, in use: what they say of their own texts equals a second look, calibrated and not.

Axes: B rows, T positions, V vocabulary.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from experiments import generate
from lm.calibration.calibrators import Fitted
from lm.decoding.beam_search import BeamSearchConfig
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
from lm.inference.language_models import LanguageModel, TaskLanguageModel
from lm.objectives.objective import ObjectiveConfig
from tests.tiny import command_line, replace, run, tiny_config
from tests.tiny_tasks import rows_of

SAMPLING = SamplingConfig(max_new_tokens=5, seed=3, top_k=20)
PROMPTS = ["the model", "it"]


def temperature(value, classes):
    parameters = {"temperature": np.float32(value), "converged": True, "at_bound": False}
    return Fitted("temperature", parameters, classes, 41, 1.0, 0.9, True, False)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The work directory of a pretraining run of two steps, by objective."""
    made = {}

    def train(objective, architecture):
        if objective not in made:
            folder = tmp_path_factory.mktemp(objective)
            config = tiny_config(folder, steps=2, evaluate_every=2)
            kind = ObjectiveConfig(name=objective)
            config = replace(config, model={"architecture": architecture, "layers": 1}, objective=kind)
            run(config, folder / "run")
            made[objective] = folder / "run"
        return made[objective]

    return train


def softened(log_probs_TV, tokens_T, value):
    return jax.nn.log_softmax(log_probs_TV / value, axis=-1)[np.arange(len(tokens_T)), tokens_T]


def second_look(model, prompt, tokens):
    """The log-probabilities [T, V] by which a model chose tokens, from one pass over all of them."""
    (read,) = model.prompt_tokens([prompt])
    variables = {"params": model.params}
    if model.config.model.architecture == "decoder":
        logits_TV = model.model.apply(variables, np.array([[*read, *tokens]]))[0, len(read) - 1 : -1]
    else:
        seen = np.array([[model.tokenizer.end_of_text, *tokens[:-1]]])
        logits_TV = model.model.apply(variables, np.array([read]), seen)[0]
    known_1V = np.arange(logits_TV.shape[1])[None] < model.tokenizer.vocab_size
    return jax.nn.log_softmax(jnp.where(known_1V, logits_TV, -jnp.inf), axis=-1)


RUNS = {
    "causal": ("causal", "decoder"),
    "span_corruption": ("span_corruption", "encoder_decoder"),
    "completion": None,
    "sequence_to_sequence": None,
}


@pytest.fixture(params=RUNS)
def directory(request, pretrained, finetuned, here):
    objective = RUNS[request.param]
    return pretrained(*objective) if objective else here / finetuned(request.param)


def test_log_probs_equal_a_second_look_raw_and_calibrated(directory):
    plain = lm.load(directory)
    assert isinstance(plain, LanguageModel)
    calibrator = temperature(2.5, plain.config.model.vocab_size)
    model = lm.load(directory, calibrator=calibrator)
    for how in (SAMPLING, BeamSearchConfig(beams=2, max_new_tokens=5)):
        written = model.generate(PROMPTS, how)
        scored = model.log_probs(PROMPTS, [each.tokens for each in written])
        for prompt, each, again in zip(PROMPTS, written, scored, strict=True):
            expected_TV = second_look(model, prompt, each.tokens)
            raw = np.asarray(expected_TV)[np.arange(each.tokens.size), each.tokens]
            calibrated = softened(expected_TV, each.tokens, 2.5)
            for found in (each, again):
                np.testing.assert_allclose(found.log_probs, raw, rtol=1e-4, atol=1e-4)
                np.testing.assert_allclose(found.calibrated_log_probs, calibrated, rtol=1e-4, atol=1e-4)
            assert each.confidence == pytest.approx(np.exp(np.mean(calibrated)), rel=1e-3)
            assert np.abs(each.log_probs - each.calibrated_log_probs).max() > 1e-3
        (first, *_) = plain.log_probs(PROMPTS, [each.tokens for each in written])
        np.testing.assert_allclose(first.log_probs, written[0].log_probs, rtol=1e-4, atol=1e-4)
        assert first.calibrated_log_probs is None


def test_texts_and_their_end(directory):
    model = lm.load(directory)
    end = model.tokenizer.end_of_text
    written = model.generate(PROMPTS, BeamSearchConfig(beams=1, max_new_tokens=5))
    for prompt, each in zip(PROMPTS, written, strict=True):
        assert each.prompt == prompt
        assert each.finished == (each.tokens[-1] == end)
        body = each.tokens[:-1] if each.finished else each.tokens
        specials = isinstance(model, TaskLanguageModel) or model.config.model.architecture == "decoder"
        assert each.text == model.tokenizer.decode(body.tolist(), skip_special_tokens=specials)
    open_, ended = (model.log_probs(PROMPTS[:1], ["it"], finished=finished)[0] for finished in (False, True))
    assert ended.tokens.tolist() == [*open_.tokens.tolist(), end]
    np.testing.assert_allclose(ended.log_probs[:-1], open_.log_probs, rtol=1e-4)


def test_several_samples_stand_beside_each_other(directory):
    model = lm.load(directory)
    written = model.generate(PROMPTS, SamplingConfig(max_new_tokens=3, samples=2))
    assert [each.prompt for each in written] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert model.generate([]) == model.log_probs([], []) == []


@pytest.mark.parametrize("kind", ["completion", "sequence_to_sequence"])
def test_a_task_is_written_as_its_evaluation_wrote_it(kind, finetuned, here):
    workdir, rows = finetuned(kind), rows_of(kind, "test")
    model = lm.load(workdir)
    assert isinstance(model, TaskLanguageModel)
    records = [json.loads(line) for line in (workdir / "predictions" / "test.jsonl").read_text().splitlines()]
    found = model.generate([row[model.task.text_columns[0]] for row in rows])
    assert [each.text for each in found] == [record["predicted"] for record in records]
    np.testing.assert_allclose(
        [each.confidence for each in found], [record["confidence"] for record in records], rtol=1e-4
    )


def test_an_encoder_decoder_reads_the_marks_it_was_trained_with(pretrained):
    model = lm.load(pretrained("span_corruption", "encoder_decoder"))
    mark, end = model.tokenizer.special_id("<extra_id_0>"), model.tokenizer.end_of_text
    (read,) = model.prompt_tokens(["the <extra_id_0> it"])
    assert read == [*model.tokenizer.encode("the"), mark, *model.tokenizer.encode(" it"), end]
    assert model.embed(["the model", "it"]).shape == (2, 16)
    scored = model.log_probs(["the <extra_id_0> it"], ["<extra_id_0> sat"])[0]
    assert scored.tokens[0] == mark


def test_a_masked_model_fills_its_masks(pretrained):
    directory = pretrained("masked", "encoder")
    model = lm.load(directory)
    vocab = model.config.model.vocab_size
    (first, second) = model.fill(["the [MASK] it", "[MASK] is [MASK]"], top=3)
    assert [len(first), len(second)] == [1, 2]
    ids = [model.tokenizer.special_id(name) for name in ("[CLS]", "[MASK]", "[SEP]")]
    tokens = [ids[0], *model.tokenizer.encode("the"), ids[1], *model.tokenizer.encode(" it"), ids[2]]
    logits_V = model.model.apply({"params": model.params}, np.array([tokens]))[0, tokens.index(ids[1])]
    p_V = np.asarray(jax.nn.softmax(logits_V))
    np.testing.assert_allclose(first[0].probabilities, np.sort(p_V)[::-1][:3], rtol=1e-4)
    assert first[0].calibrated_probabilities is None
    (soft,) = lm.load(directory, calibrator=temperature(2.0, vocab)).fill(["the [MASK] it"], top=3)
    np.testing.assert_allclose(soft[0].probabilities, first[0].probabilities, rtol=1e-4)
    np.testing.assert_allclose(
        soft[0].calibrated_probabilities, np.sort(np.asarray(jax.nn.softmax(logits_V / 2)))[::-1][:3], rtol=1e-4
    )
    with pytest.raises(UserError, match=r"text 1 has no \[MASK\]"):
        model.fill(["the model"])
    with pytest.raises(UserError, match="this run is a masked language model; it has no generate: use fill or embed"):
        model.generate(["the"])


def test_a_language_model_predicts_no_classes(pretrained):
    model = lm.load(pretrained("causal", "decoder"))
    with pytest.raises(UserError, match=r"has no predict: use generate or log_probs or embed$"):
        model.predict(["the"])
    with pytest.raises(UserError, match="there are 1 prompts and 2 continuations"):
        model.log_probs(["the"], ["a", "b"])


def test_the_command_generates_from_a_fine_tuned_run(finetuned, here, capsys):
    for kind, continues in (("completion", True), ("sequence_to_sequence", False)):
        workdir, prompt = finetuned(kind), next(iter(rows_of(kind, "test")[0].values()))
        model = lm.load(workdir)
        (expected,) = model.generate([prompt], BeamSearchConfig(beams=1, max_new_tokens=6))
        temperature(2.0, model.choices).save(workdir / "calibration" / "soft.json")
        flags = (f"--workdir={workdir}", f"--prompt={prompt}", "--config.max_new_tokens=6", "--beams=1")
        capsys.readouterr()
        assert command_line(generate.main, generate.define_flags, *flags) == 0
        assert capsys.readouterr().out == (prompt if continues else "") + expected.text + "\n"
        assert command_line(generate.main, generate.define_flags, *flags, "--json", "--calibrator=soft") == 0
        line = json.loads(capsys.readouterr().out)
        assert (line["prompt"], line["checkpoint"], line["finished"]) == (prompt, model.step, expected.finished)
        assert len(line["tokens"]) == len(line["log_probs"]) == len(line["calibrated_log_probs"])
        assert "sampling_log_probs" not in line
    assert command_line(generate.main, generate.define_flags, f"--workdir={finetuned('pair')}") == 2
    assert "this run is a classifier; it has no generate" in capsys.readouterr().err
