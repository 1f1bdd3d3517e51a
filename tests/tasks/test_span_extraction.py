"""Question answering: windows that miss nothing, answers cut from the text, and what "no answer" means."""

import functools
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from lm.data.config import TokenizerConfig
from lm.data.tokenizers import Tokenizer, train_tokenizer
from lm.errors import UserError
from lm.models.heads import SpanExtractor
from lm.modules.config import ModelConfig
from lm.runs.results import calibration_metrics
from lm.tasks.span_extraction import SpanExtraction
from lm.tasks.supervised import TaskConfig
from lm.tasks.text_encoding import special_tokens

PLACES = ["Zürich", "the naïve café", "New York", "Kyōto", "Ulm"]


def make_row(number, words=40, answer=True):
    """A context of words and spaces, in which a person is somewhere."""
    random = np.random.default_rng((7, number))
    filler = list(random.choice(["and", "then", "(so)", "it  was", "said,", "émigré"], size=words))
    place = PLACES[number % len(PLACES)]
    at = int(random.integers(len(filler)))
    context = " ".join([*filler[:at], f"Ann is in {place}", *filler[at:]])
    answers = [{"text": place, "start": context.index(place)}] if answer else []
    return {
        "id": f"q{number}",
        "context": context,
        "question": "Where is Ann?" if answer else "Where is Bob?",
        "answers": answers,
        "place": f"dev.json:{number}",
    }


ROWS = [make_row(number) for number in range(8)]
MIXED = [make_row(number, words=5 + 3 * number, answer=number % 2 == 0) for number in range(6)]


@functools.cache
def make_tokenizer(kind="words", architecture="encoder") -> Tokenizer:
    texts = [text for row in ROWS + MIXED for text in (row["context"], row["question"])]
    config = TokenizerConfig(kind=kind, vocab_size=320)
    return train_tokenizer(config, lambda split: texts).with_special_tokens(special_tokens(architecture))


def make_task(kind="words", architecture="encoder", max_length=40, stride=12, **choices):
    tokenizer = make_tokenizer(kind, architecture)
    shape = {"layers": 1, "width": 16, "max_length": max_length, "dropout": 0.1}
    if architecture != "lstm":
        shape |= {"heads": 2, "attention": "xla"}
    types = 2 if architecture == "encoder" else 0
    model = ModelConfig(architecture=architecture, vocab_size=tokenizer.vocab_size, segment_types=types, **shape)
    config = TaskConfig(name="question_answering", stride=stride, **({"unanswerable": True} | choices))
    return SpanExtraction(SpanExtractor(model), config, tokenizer)


def make_batch(examples, length, fill=0):
    """Examples padded to a length, with `fill` in place of the padding's tokens and types."""
    batch = {
        name: np.stack([each[name] for each in examples]) for name in examples[0] if name not in SpanExtraction.axes
    }
    for name in SpanExtraction.axes:
        value = 0 if name in ("segments", "allowed") else fill
        padded = [np.pad(each[name], (0, length - each[name].size), constant_values=value) for each in examples]
        batch[name] = np.stack(padded)
    return batch | {"row_weights": np.ones(len(examples), np.float32)}


def outputs_for(examples, start="start", end="end", padding=3):
    """Logits that are sure of a position of each example, padded with what is impossible."""
    outputs = []
    for example in examples:
        logits = {}
        for name, at in (("start", start), ("end", end)):
            values = np.where(example["allowed"] > 0, -20, -1e30)
            values[example[at]] = 20
            logits[name] = np.pad(values, (0, padding), constant_values=-1e30).astype(np.float32)
        outputs.append(logits)
    return outputs


def context_span(example, layout_after=1):
    """Where in a window of an encoder the context stands."""
    begin = int(example["types"].argmax())
    return begin, example["tokens"].size - layout_after


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(make_task().init, jax.random.key(0))
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=0.3).astype(np.float32), shapes)


@functools.cache
def compiled_loss():
    return jax.jit(jax.value_and_grad(make_task().loss, has_aux=True))


@functools.cache
def compiled_predict():
    return jax.jit(make_task().predict)


@pytest.mark.parametrize("kind", ["words", "bpe"])
@pytest.mark.parametrize("stride", [0, 5, 12])
def test_windows_cover_the_context_and_overlap_by_the_stride(kind, stride):
    task = make_task(kind, stride=stride)
    for number, row in enumerate(ROWS):
        ids, _ = task.tokenizer.encode_with_offsets(row["context"])
        covered, previous_end = [], None
        examples = [each for each in task.encode(ROWS).examples if each["row"] == number]
        assert len(examples) > 1
        for example in examples:
            assert example["tokens"].size <= 40
            begin, end = context_span(example)
            first = int(example["first"])
            np.testing.assert_array_equal(example["tokens"][begin:end], ids[first : first + end - begin])
            if previous_end is not None:
                assert previous_end - first == stride
            previous_end = first + end - begin
            covered += range(first, previous_end)
        assert sorted(set(covered)) == list(range(len(ids)))


def test_the_layout_of_a_window():
    task = make_task("bytes")
    row = {"context": "Ann is in Ulm", "question": "Where?", "answers": [], "place": "1"}
    (example,) = task.encode([row]).examples
    text = task.tokenizer.decode(example["tokens"], skip_special_tokens=False)
    assert text == "[CLS]Where?[SEP]Ann is in Ulm[SEP]"
    np.testing.assert_array_equal(example["types"], [0] * 8 + [1] * 14)
    np.testing.assert_array_equal(example["allowed"], [1] + [0] * 7 + [1] * 13 + [0])
    assert example["start"] == example["end"] == example["no_answer"] == 0


@pytest.mark.parametrize("kind", ["bytes", "bpe", "words"])
def test_every_answer_is_whole_in_some_window(kind):
    task = make_task(kind, max_length=60, stride=20)
    examples = task.encode(ROWS).examples
    for number, row in enumerate(ROWS):
        _, places = task.tokenizer.encode_with_offsets(row["context"])
        found = []
        for example in examples:
            if example["row"] != number or example["start"] == example["no_answer"]:
                continue
            begin, _ = context_span(example)
            first, last = (int(example[name]) - begin + int(example["first"]) for name in ("start", "end"))
            found.append(row["context"][places[first][0] : places[last][1]])
        assert found
        assert set(found) == {row["answers"][0]["text"]}


@pytest.mark.parametrize("stride", [0, 3])
def test_targets_are_where_answers_may_be(stride):
    task = make_task("bytes", max_length=20, stride=stride)
    for before in range(40):
        row = {"context": f"{'x' * before}Ulm{'y' * 20}", "question": "?", "place": "1"}
        row["answers"] = [{"text": "Ulm", "start": before}]
        found = 0
        for example in task.encode([row]).examples:
            start, end = int(example["start"]), int(example["end"])
            assert example["allowed"][[start, end]].all()
            if start != example["no_answer"]:
                found += 1
                assert task.tokenizer.decode(example["tokens"][start : end + 1]) == "Ulm"
        assert found or stride < 2, "an answer of three tokens is in some window if windows overlap by two"


def test_only_the_first_answer_is_the_target():
    task = make_task("bytes")
    answers = [{"text": "Ulm", "start": 10}, {"text": "in Ulm", "start": 7}]
    row = {"context": "Ann is in Ulm", "question": "?", "answers": answers, "place": "1"}
    examples = task.encode([row]).examples
    assert examples[0]["end"] - examples[0]["start"] == 2
    assert task.results([row], examples, outputs_for(examples)).records[0]["answers"] == ["Ulm", "in Ulm"]


def test_questions_on_one_context_are_one_item():
    task = make_task("bytes")
    rows = [ROWS[0], {**ROWS[0], "question": "Where is it?", "place": "dev.json:x"}, ROWS[1]]
    examples = task.encode(rows).examples
    results = task.results(rows, examples, outputs_for(examples))
    assert results.metrics["exact_match"].statistics_NK.shape[0] == 2
    clusters = list(results.predictions.clusters_N)
    assert clusters[0] == clusters[1] != clusters[2]
    assert list(results.predictions.ids_N) == [row["place"] for row in rows]


@pytest.mark.parametrize("kind", ["bytes", "bpe", "words"])
def test_perfect_outputs_give_perfect_results(kind):
    task = make_task(kind, max_length=60, stride=20)
    examples = task.encode(MIXED).examples
    results = task.results(MIXED, examples, outputs_for(examples))
    assert list(results.metrics)[:2] == ["exact_match", "f1"]
    assert {name: metric.value for name, metric in results.metrics.items()} == dict.fromkeys(results.metrics, 1)
    for row, record in zip(MIXED, results.records, strict=True):
        assert record["answers"] == [answer["text"] for answer in row["answers"]]
        assert record["predicted"] == (record["answers"] or [""])[0]
        assert (record["id"], record["question"]) == (row["id"], row["question"])
        assert record["confidence"] == pytest.approx(1)
    assert (results.predictions.labels_N == 1).all()
    assert (results.predictions.logits[:, 1] > -1e-6).all()


def test_confidence_is_a_softmax_over_all_candidates():
    task = make_task("bytes", max_answer_length=2)
    row = {"context": "a bc", "question": "?", "answers": [{"text": "bc", "start": 2}], "place": "1"}
    (example,) = task.encode([row]).examples
    begin, _ = context_span(example)
    start, end = np.random.default_rng(0).normal(size=(2, example["tokens"].size))
    results = task.results([row], [example], [{"start": start, "end": end}])
    # White space neither starts nor ends an answer, and none is longer than two tokens.
    spans = {"a": (0, 0), "b": (2, 2), "c": (3, 3), "bc": (2, 3)}
    scores = {text: start[begin + first] + end[begin + last] for text, (first, last) in spans.items()}
    scores[""] = start[0] + end[0]
    best = max(scores, key=scores.get)
    p = np.exp(scores[best]) / sum(np.exp(list(scores.values())))
    assert results.records[0]["predicted"] == best
    assert results.records[0]["confidence"] == pytest.approx(p)
    np.testing.assert_allclose(results.predictions.logits, [[np.log1p(-p), np.log(p)]], rtol=1e-5)
    np.testing.assert_array_equal(results.predictions.labels_N, [int(best == "bc")])


def test_no_answer_is_predicted_only_if_every_window_predicts_it():
    task = make_task("bytes")
    row = make_row(0, words=20)
    examples = task.encode([row]).examples
    denied = outputs_for(examples, "no_answer", "no_answer")
    assert task.results([row], examples, denied).records[0]["predicted"] == ""
    given = outputs_for(examples)
    assert sum(each["start"] != each["no_answer"] for each in examples) < len(examples), "some windows have no answer"
    assert task.results([row], examples, given).records[0]["predicted"] == row["answers"][0]["text"]


def test_no_answer_is_not_a_candidate_if_every_question_has_one():
    task = make_task("bytes", unanswerable=False)
    examples = task.encode(ROWS).examples
    results = task.results(ROWS, examples, outputs_for(examples, "no_answer", "no_answer"))
    assert all(record["predicted"] for record in results.records)
    with pytest.raises(UserError, match=r"dev.json:1 has no answer: set config.task.unanswerable=True"):
        task.encode(MIXED)


def test_spans_end_after_they_start_and_are_not_too_long():
    task = make_task("bytes", max_length=80, max_answer_length=3)
    row = {"context": "one two", "question": "?", "answers": [{"text": "two", "start": 4}], "place": "1"}
    (example,) = task.encode([row]).examples
    (output,) = outputs_for([example])
    begin, _ = context_span(example)
    output["start"][begin + 5], output["end"][begin + 1] = 30, 30  # the best of each, but in the wrong order
    assert task.results([row], [example], [output]).records[0]["predicted"] == "wo"
    output["start"][begin : begin + 6] = [40, -20, -20, -20, 20, -20]  # "one two" would be best, but is too long
    assert task.results([row], [example], [output]).records[0]["predicted"] == "on"
    output["start"][begin] = 20
    output["end"][begin + 1] = -20
    assert task.results([row], [example], [output]).records[0]["predicted"] == "two"


@pytest.mark.parametrize("best_window", [0, 1])
def test_a_span_in_two_windows_is_one_candidate_with_its_best_score(best_window):
    task = make_task("bytes", max_length=30, stride=8, max_answer_length=1)
    row = {"context": "abcdefghijklmnopqrstuvwxyz0123", "question": "?", "answers": [], "place": "1"}
    examples = task.encode([row]).examples
    assert [each["first"] for each in examples] == [0, 18], "of 26 tokens, 8 are in both windows"
    outputs = []
    for number, example in enumerate(examples):
        begin, _ = context_span(example)
        logits = np.zeros(example["tokens"].size)
        logits[begin + 20 - int(example["first"])] = 1.5 if number == best_window else 0.5
        outputs.append({"start": logits, "end": logits})
    record = task.results([row], examples, outputs).records[0]
    assert record["predicted"] == "u"
    assert record["confidence"] == pytest.approx(np.exp(3) / (np.exp(3) + 29 + 1))


@pytest.mark.parametrize(("architecture", "no_answer"), [("decoder", -1), ("lstm", 0)])
def test_other_architectures_have_a_place_for_no_answer(architecture, no_answer):
    task = make_task("bytes", architecture)
    examples = task.encode(MIXED).examples
    for example in examples:
        assert example["no_answer"] == range(example["tokens"].size)[no_answer]
        assert example["allowed"][no_answer] == 1
    results = task.results(MIXED, examples, outputs_for(examples))
    assert results.metrics["exact_match"].value == 1


def test_sums_equal_the_definition(params):
    task = make_task()
    examples = task.encode(MIXED).examples
    batch = make_batch(examples, 40)
    batch["row_weights"][0] = 0
    (total, sums), _ = compiled_loss()(params, batch, None)
    outputs = compiled_predict()(params, batch)
    rows = np.arange(len(examples))
    nll = [-jax.nn.log_softmax(outputs[name])[rows, batch[name]] for name in ("start", "end")]
    right = [outputs[name].argmax(axis=1) == batch[name] for name in ("start", "end")]
    assert sums.keys() == {"weight", "loss", "objective", "accuracy"}
    assert sums["weight"] == len(examples) - 1
    np.testing.assert_allclose([total, sums["loss"], sums["objective"]], np.mean(nll, axis=0)[1:].sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["accuracy"], np.logical_and(*right)[1:].sum())


def test_padding_changes_nothing(params):
    task = make_task()
    examples = task.encode(MIXED).examples
    batch, other = make_batch(examples, 40), make_batch(examples, 40, fill=1)
    assert (batch["segments"] == 0).any()
    one, two = (compiled_predict()(params, each) for each in (batch, other))
    for name in ("start", "end"):
        np.testing.assert_allclose(one[name], two[name], atol=1e-6)
        assert (np.asarray(one[name])[batch["allowed"] == 0] < -1e29).all()


def test_training_learns_where_answers_are(params):
    task = make_task()
    examples = task.encode(MIXED).examples
    batch = make_batch(examples, 40)
    losses = []
    for _ in range(30):
        (_, sums), gradient = compiled_loss()(params, batch, None)
        losses.append(float(sums["loss"] / sums["weight"]))
        params = jax.tree.map(lambda leaf, slope: leaf - 0.02 * np.asarray(slope), params, gradient)
    assert losses[-1] < 0.5 * losses[0]


def test_questions_too_long_are_an_error_or_cut():
    row = {"context": "Ann is in Ulm", "question": "Where? " * 9, "answers": [], "place": "dev.json:3"}
    with pytest.raises(UserError) as caught:
        make_task("bytes").encode([row])
    assert str(caught.value).startswith(
        "dev.json:3: the question has 63 tokens, more than half of what fits into config.model.max_length=40"
    )
    encoded = make_task("bytes", truncate=True).encode([row])
    assert encoded.cut == 1
    (example,) = encoded.examples
    assert example["tokens"].size == 3 + 18 + 13


def test_a_stride_that_no_window_can_make_is_an_error():
    with pytest.raises(
        UserError, match=r"dev.json:0: config.task.stride=36 must be less than the number of context tokens"
    ):
        make_task(stride=36).encode(ROWS)
    short = {"context": "Ann is in Ulm", "question": "Where?", "answers": [], "place": "1"}
    assert len(make_task("bytes", stride=36).encode([short]).examples) == 1, (
        "where one window is enough, nothing overlaps"
    )


def test_answers_out_of_reach_are_counted_and_named():
    task = make_task("bytes", max_length=30, stride=8)
    context = "abcdefghijklmnopqrstuvwxyz0123"

    def row(answer):
        answers = [{"text": answer, "start": context.index(answer)}]
        return {"context": context, "question": "?", "answers": answers, "place": f"dev.json:{answer}"}

    over_the_seam = context[16:30]  # windows hold 26 tokens, the second begins at 18
    rows = [row("abc"), row(over_the_seam), row(context[15:27])]
    (note,) = task.encode(rows).notes
    assert note.startswith(f"2 of 3 answers (the first: dev.json:{over_the_seam}) fit into no window")
    assert "raise config.task.stride" in note
    assert make_task("bytes", max_length=34, stride=14).encode(rows).notes == ()
    (note,) = make_task("bytes", max_length=34, stride=14, max_answer_length=13).encode(rows).notes
    assert note.startswith(
        f"1 of 3 answers (the first: dev.json:{over_the_seam}) have more tokens than config.task.max"
    )
    assert task.encode([{name: each[name] for name in each if name != "answers"} for each in rows]).notes == ()


def test_a_wrong_answer_is_never_right_with_confidence():
    task = make_task("bytes")
    examples = task.encode(ROWS).examples
    results = task.results(ROWS, examples, outputs_for(examples, "no_answer", "no_answer"))
    assert results.metrics["exact_match"].value == 0
    found = calibration_metrics(results.predictions)
    assert found["confidence"] == found["ece"] > 0.99, "sure of wrong answers"


def test_a_context_without_words_is_an_error():
    row = {"context": "  ", "question": "Where?", "answers": [], "place": "dev.json:3"}
    with pytest.raises(UserError, match=r"dev.json:3: the context has no words: remove the row"):
        make_task("bytes").encode([row])


@pytest.mark.skipif("LM_DATA_DIR" not in os.environ, reason="LM_DATA_DIR is not set")
def test_answers_of_real_questions_come_back():
    from lm.data.rows import read_rows

    file = Path(os.environ["LM_DATA_DIR"]) / "xquad" / "xquad.de.json"
    columns = {name: name for name in ("id", "context", "question", "answers")}
    rows = read_rows(f"squad:{file}", columns, "config.examples.test")[:60]
    task = make_task("bytes", max_length=384, stride=128, max_answer_length=120)
    examples = task.encode(rows).examples
    results = task.results(rows, examples, outputs_for(examples))
    assert results.metrics["exact_match"].value == 1
