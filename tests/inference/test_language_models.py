"""Models that write, in use: what they say of their own texts equals a second look, calibrated and not.

Axes: B rows, T positions, V vocabulary.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import special

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

README = Path(__file__).parents[2] / "README.md"
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
            config = tiny_config(folder, prompts=(), steps=2, evaluate_every=2)
            kind = ObjectiveConfig(name=objective)
            config = replace(config, model={"architecture": architecture, "layers": 1}, objective=kind)
            run(config, folder / "run")
            made[objective] = folder / "run"
        return made[objective]

    return train


def second_look(model, prompt, tokens):
    """The log-probabilities [T, V] by which a model chose tokens, from one pass over all of them."""
    (read,) = model.prompt_tokens([prompt])
    if model.config.model.architecture == "decoder":
        inputs, first = ([*read, *tokens],), len(read) - 1
    else:
        inputs, first = (read, [model.tokenizer.end_of_text, *tokens[:-1]]), 0
    logits_BTV = jax.jit(model.model.apply)({"params": model.params}, *(np.array([ids]) for ids in inputs))
    logits_TV = np.array(logits_BTV[0, first : first + len(tokens)], np.float64)
    logits_TV[:, model.tokenizer.vocab_size :] = -np.inf
    return special.log_softmax(logits_TV, axis=-1)


BEAMS = BeamSearchConfig(beams=2, max_new_tokens=5)
# How to train, and how to write.
RUNS = {
    "causal": ("decoder", SAMPLING),
    "span_corruption": ("encoder_decoder", SAMPLING),
    "completion": (None, BEAMS),
    "sequence_to_sequence": (None, BEAMS),
}


_SLOW = ("span_corruption", "completion", "sequence_to_sequence")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) if name in _SLOW else name for name in RUNS])
def directory_and_how(request, pretrained, finetuned, here):
    architecture, how = RUNS[request.param]
    return pretrained(request.param, architecture) if architecture else here / finetuned(request.param), how


def test_log_probs_equal_a_second_look_raw_and_calibrated(directory_and_how):
    directory, how = directory_and_how
    plain = lm.load(directory)
    assert isinstance(plain, LanguageModel)
    model = lm.load(directory, calibrator=temperature(2.5, plain.config.model.vocab_size))
    written = model.generate(PROMPTS, how)
    scored = model.log_probs(PROMPTS, [each.tokens for each in written])
    without = plain.log_probs(PROMPTS, [each.tokens for each in written])
    for prompt, each, again, uncalibrated in zip(PROMPTS, written, scored, without, strict=True):
        expected_TV, chosen = second_look(model, prompt, each.tokens), (np.arange(each.tokens.size), each.tokens)
        calibrated_T = special.log_softmax(expected_TV / 2.5, axis=-1)[chosen]
        for found in (each, again):
            np.testing.assert_allclose(found.log_probs, expected_TV[chosen], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(found.calibrated_log_probs, calibrated_T, rtol=1e-4, atol=1e-4)
        assert each.confidence == pytest.approx(np.exp(np.mean(calibrated_T)), rel=1e-3)
        assert np.abs(each.log_probs - each.calibrated_log_probs).max() > 1e-3
        np.testing.assert_allclose(uncalibrated.log_probs, each.log_probs, rtol=1e-4, atol=1e-4)
        assert uncalibrated.calibrated_log_probs is None


def test_texts_and_their_end(directory_and_how):
    directory, how = directory_and_how
    model = lm.load(directory)
    end = model.tokenizer.end_of_text
    keeps_marks = "objective" in vars(model.config) and model.config.objective.name == "span_corruption"
    for prompt, each in zip(PROMPTS, model.generate(PROMPTS, how), strict=True):
        assert each.prompt == prompt
        assert each.finished == (each.tokens[-1] == end)
        body = each.tokens[:-1] if each.finished else each.tokens
        assert each.text == model.tokenizer.decode(body.tolist(), skip_special_tokens=not keeps_marks)
    open_, ended = (model.log_probs(["it", "is"], ["it", "is"], finished)[0] for finished in (False, True))
    assert ended.tokens.tolist() == [*open_.tokens.tolist(), end]
    np.testing.assert_allclose(ended.log_probs[:-1], open_.log_probs, rtol=1e-4)
    assert model.generate([]) == model.log_probs([], []) == []


def test_several_samples_of_a_prompt_are_adjacent(pretrained):
    model = lm.load(pretrained("causal", "decoder"))
    written = model.generate(["it", "is"], SamplingConfig(max_new_tokens=5, samples=2))
    assert [each.prompt for each in written] == ["it", "it", "is", "is"]
    assert written[0].tokens.tolist() != written[1].tokens.tolist()


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_encoder_decoder_reads_the_marks_it_was_trained_with(pretrained):
    model = lm.load(pretrained("span_corruption", "encoder_decoder"))
    mark, end = model.tokenizer.special_id("<extra_id_0>"), model.tokenizer.end_of_text
    (read,) = model.prompt_tokens(["the <extra_id_0> it"])
    assert read == [*model.tokenizer.encode("the"), mark, *model.tokenizer.encode(" it"), end]
    assert model.embed(["the model", "it"]).shape == (2, 16)
    scored = model.log_probs(["the <extra_id_0> it"], ["<extra_id_0> sat"])[0]
    assert scored.tokens[0] == mark


@pytest.mark.slow
def test_a_masked_model_fills_its_masks(pretrained):
    directory = pretrained("masked", "encoder")
    model = lm.load(directory)
    vocab = model.config.model.vocab_size
    (first, second) = model.fill(["the [MASK] it", "[MASK] is [MASK]"], top=3)
    assert [len(first), len(second)] == [1, 2]
    ids = [model.tokenizer.special_id(name) for name in ("[CLS]", "[MASK]", "[SEP]")]
    tokens = [ids[0], *model.tokenizer.encode("the"), ids[1], *model.tokenizer.encode(" it"), ids[2]]
    logits_V = jax.jit(model.model.apply)({"params": model.params}, np.array([tokens]))[0, tokens.index(ids[1])]
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


@pytest.mark.slow
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
        assert expected.continues == continues
        assert command_line(generate.main, generate.define_flags, *flags, "--json", "--calibrator=soft") == 0
        line = json.loads(capsys.readouterr().out)
        assert (line["prompt"], line["checkpoint"], line["finished"]) == (prompt, model.step, expected.finished)
        assert len(line["tokens"]) == len(line["log_probs"]) == len(line["calibrated_log_probs"])
        assert "sampling_log_probs" not in line
    assert command_line(generate.main, generate.define_flags, f"--workdir={finetuned('classification')}") == 2
    assert "this run is a classifier, which writes no text: use experiments.predict" in capsys.readouterr().err


def test_the_code_in_the_readme_runs(pretrained, finetuned, here, monkeypatch, capsys):
    runs = {"runs/sst2": finetuned("classification"), "runs/quickstart": pretrained("causal", "decoder")}
    temperature(2.0, 2).save(runs["runs/sst2"] / "calibration" / "temperature.json")
    code = README.read_text(encoding="utf-8").split("<!-- use a model -->")[1].split("```")[1].removeprefix("python")
    load = lm.load
    monkeypatch.setattr(lm, "load", lambda directory, **options: load(runs[directory], **options), raising=False)
    exec(code, {})
    assert capsys.readouterr().out.startswith(("animal", "colour"))
