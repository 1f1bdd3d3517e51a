"""Prototypical calibration: clusters find their labels, densities are those of Gaussians, bad roots are refused."""

import json

import numpy as np
import pytest
from scipy import special, stats

from lm.calibration.calibrators import Fitted, fit
from lm.errors import UserError

N, C = 180, 3
RANDOM = np.random.default_rng(0)
CENTRES = np.array([[3.0, 2.5, 0.0], [2.0, 3.0, 0.5], [2.0, 1.5, 1.2]])  # of the items of each label; none prefers 2
LABELS = np.arange(N) % C
LOGITS = (CENTRES[LABELS] + RANDOM.normal(scale=0.2, size=(N, C))).astype(np.float32)


def test_clusters_find_their_labels():
    assert (LOGITS.argmax(axis=1)[LABELS == 2] != 2).all(), "the example shows nothing"
    found = fit("prototypical", LOGITS)
    assert (np.asarray(found.apply(LOGITS)).argmax(axis=1) == LABELS).mean() > 0.97
    # Whatever the order of labels and items.
    order, items = np.array([2, 0, 1]), RANDOM.permutation(N)
    other = fit("prototypical", LOGITS[items][:, order])
    expected, moved = (special.softmax(x, axis=1) for x in (found.apply(LOGITS), other.apply(LOGITS[:, order])))
    np.testing.assert_allclose(moved, expected[:, order], atol=0.02)


def test_probabilities_are_those_of_the_mixture_of_gaussians():
    found = fit("prototypical", LOGITS)
    log_p = special.log_softmax(LOGITS.astype(np.float64), axis=1)
    shares = np.exp(np.float64(found.parameters["log_shares"]))
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    densities = []
    for mean, root in zip(found.parameters["means"], np.float64(found.parameters["roots"]), strict=True):
        covariance = np.linalg.inv(root @ root.T)
        assert np.linalg.eigvalsh(covariance).min() > 0.9e-3
        densities.append(stats.multivariate_normal(mean, covariance).pdf(log_p))
    expected = shares * np.stack(densities, axis=1)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(special.softmax(found.apply(LOGITS), axis=1), expected, atol=1e-4)
    # EM is at rest: shares and means are those of the items' shares.
    np.testing.assert_allclose(expected.mean(axis=0), shares, atol=2e-3)
    means = expected.T @ log_p / expected.sum(axis=0)[:, None]
    np.testing.assert_allclose(means, found.parameters["means"], atol=5e-3)


def test_items_that_lack_a_label_are_left_out():
    lacking = LOGITS[:40].copy()
    lacking[:, 1] = -np.inf
    whole = fit("prototypical", np.concatenate([LOGITS, lacking]))
    np.testing.assert_array_equal(whole.parameters["means"], fit("prototypical", LOGITS).parameters["means"])
    with pytest.raises(UserError, match="as many as there are labels, 3, but there are 2"):
        fit("prototypical", np.concatenate([LOGITS[:2], lacking]))


def test_items_count_by_their_weights():
    repeated = np.concatenate([LOGITS, LOGITS[LABELS == 0]])
    found, expected = fit("prototypical", LOGITS, weights=1 + (LABELS == 0)), fit("prototypical", repeated)
    assert np.exp(expected.parameters["log_shares"][0]) == pytest.approx(0.5, abs=0.02)
    for name in ("log_shares", "means"):
        np.testing.assert_allclose(found.parameters[name], expected.parameters[name], atol=0.01)


@pytest.mark.parametrize(("place", "value"), [((0, 1, 0), 0.5), ((2, 1, 1), 0.0), ((1, 0, 0), -3.0), ((0, 0, 0), 1e9)])
def test_what_is_no_root_is_refused(place, value, tmp_path):
    path = tmp_path / "prototypical.json"
    fit("prototypical", LOGITS).save(path)
    record = json.loads(path.read_text())
    del record["digest"]
    path.write_text(json.dumps(record))
    Fitted.load(path)
    gaussian, row, column = place
    record["parameters"]["roots"][gaussian][row][column] = value
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="roots must be"):
        Fitted.load(path)
