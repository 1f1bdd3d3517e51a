"""Predictions of a text's tokens as a file: each row is what the model says of that token, in its own context.

Axes: N tokens, T positions, V vocabulary.
"""

import jax
import numpy as np
import pytest
from scipy import special

from lm.calibration.logits import FactoredLogits, whole
from lm.calibration.predictions import Predictions
from lm.data.store import build_corpus
from lm.inference import predictions
from lm.inference.load import in_use
from lm.objectives.registry import make_task
from lm.runs.config import PredictionsConfig
from lm.runs.trained_run import TrainedRun
from lm.runs.work_directory import with_vocabulary
from tests.tiny import replace, tiny_config


@pytest.fixture(scope="module")
def corpus_and_model(tmp_path_factory):
    config = tiny_config(tmp_path_factory.mktemp("predictions"), prompts=())
    corpus = build_corpus(config.data, config.tokenizer)
    config = with_vocabulary(replace(config, model={"layers": 1}), corpus.tokenizer)
    return corpus, random_model(config, corpus.tokenizer)


def random_model(config, tokenizer, **values):
    config = replace(config, model=values)
    task = make_task(config.objective, config.model, tokenizer)
    params = jax.tree.map(lambda leaf: 3 * leaf, jax.jit(task.init)(jax.random.key(0)))
    if config.model.output_bias:
        params |= {"output_bias": np.linspace(-2, 2, config.model.size_of_vocabulary, dtype=np.float32)}
    return in_use(TrainedRun(config, tokenizer, (), task, params, 0))


@pytest.mark.parametrize(("most_logits", "kind"), [(2**26, np.ndarray), (0, FactoredLogits)])
def test_each_row_is_the_log_probability_of_its_token(corpus_and_model, tmp_path, monkeypatch, most_logits, kind):
    corpus, model = corpus_and_model
    store, length = corpus.train, model.config.model.max_length
    monkeypatch.setattr(predictions, "_MOST_LOGITS", most_logits)
    written = predictions.write_predictions(model, store, PredictionsConfig(900), 1, tmp_path / "it.npz")
    assert 900 <= len(written) < 900 + length
    found = Predictions.load(tmp_path / "it.npz")
    assert isinstance(found.logits, kind)
    stream, ids_N = np.asarray(store.tokens), found.ids_N
    np.testing.assert_array_equal(found.labels_N, stream[ids_N])
    log_probs_NV = special.log_softmax(np.asarray(whole(found.logits), np.float64), axis=-1)
    forward = jax.jit(lambda tokens_1T: model.model.apply({"params": model.params}, tokens_1T))
    starts = store.document_starts
    ends_document, soon_after = (np.flatnonzero(np.isin(ids_N - after, starts))[:5] for after in (0, 3))
    chosen = [*ends_document, *soon_after, *range(0, 900, 97)]
    assert len(chosen) == 20
    for n in chosen:
        before = ids_N[n] - 1
        begin = max(starts[np.searchsorted(starts, before, side="right") - 1], before - before % length)
        context_T = np.zeros(length, np.int32)
        context_T[: before + 1 - begin] = stream[begin : before + 1]
        logits_V = np.asarray(forward(context_T[None])[0, before - begin], np.float64)
        np.testing.assert_allclose(
            log_probs_NV[n, found.labels_N[n]], special.log_softmax(logits_V)[found.labels_N[n]], rtol=1e-4, atol=1e-4
        )


def test_factors_hold_a_scale_and_a_bias_and_capped_logits_are_whole(corpus_and_model, tmp_path, monkeypatch):
    corpus, plain = corpus_and_model
    monkeypatch.setattr(predictions, "_MOST_LOGITS", 0)
    for values, kind in (({}, FactoredLogits), ({"logit_softcap": 2.0}, np.ndarray)):
        model = random_model(plain.config, corpus.tokenizer, logit_scale=0.7, output_bias=True, **values)
        found = predictions.write_predictions(model, corpus.train, PredictionsConfig(900), 1, tmp_path / "it.npz")
        assert isinstance(found.logits, kind)
        # The token after the first of a document is predicted from that alone.
        (n,) = np.flatnonzero(np.isin(found.ids_N - 1, corpus.train.document_starts))[:1]
        first = corpus.train.tokens[found.ids_N[n] - 1]
        logits_V = jax.jit(model.model.apply)({"params": model.params}, np.full((1, 1), first, np.int32))[0, 0]
        np.testing.assert_allclose(whole(found.logits)[n], logits_V, rtol=1e-4, atol=1e-4)
        assert (np.abs(logits_V).max() <= 2) == (kind is np.ndarray)


def test_clusters_are_documents_or_windows_where_these_are_few(corpus_and_model, tmp_path, monkeypatch):
    corpus, model = corpus_and_model
    store, length = corpus.train, model.config.model.max_length
    for fewest, same in ((2, "documents"), (10_000, "windows")):
        monkeypatch.setattr(predictions, "_FEWEST_DOCUMENTS", fewest)
        found = predictions.write_predictions(model, store, PredictionsConfig(900), 1, tmp_path / "it.npz")
        documents_N = np.cumsum(np.isin(np.arange(store.num_tokens), store.document_starts))[found.ids_N - 1]
        expected_N = documents_N if same == "documents" else (found.ids_N - 1) // length
        one, other = (np.unique(clusters, return_inverse=True)[1] for clusters in (found.clusters_N, expected_N))
        np.testing.assert_array_equal(one, other)
        assert len(np.unique(one)) > 20
