"""Calibrators: optima against scipy, classes that never occur, impossible classes, and files."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from lm.calibration import logits as chunking
from lm.calibration.binning import equal_mass
from lm.calibration.calibrators import CALIBRATORS, TAKE_ZEROS, Fitted, fit, rare_classes
from lm.calibration.logits import FactoredLogits
from lm.calibration.one_vs_rest import log_odds
from lm.calibration.outcomes import outcomes
from lm.errors import UserError

N, C = 240, 4
KEEP_IMPOSSIBLE = (
    "temperature",
    "bias",
    "temperature_bias",
    "vector",
    "matrix",
    "matrix_odir",
    "structured_matrix",
)
ONE_VS_REST = ("platt", "beta", "isotonic", "histogram", "histogram_equal_mass", "bayesian_binning", "scaling_binning")
# Compiling an affine fit is what these tests cost: some penalties are tested by themselves, below.
# Those of prompted models have test_label_priors.py and test_few_labels.py.
OF_LABELS = [name for name, one in CALIBRATORS.items() if one.sees_labels and not one.start]
NAMES = [name for name in OF_LABELS if name not in ("structured_vector", "matrix_ridge")]
every = pytest.mark.parametrize("name", NAMES)


def slow_if(is_slow, *values):
    return pytest.param(*values, marks=[pytest.mark.slow] * is_slow)


# With two classes one affine map stands for the others.
OF_TWO = [name for name in NAMES if name not in KEEP_IMPOSSIBLE or name == "temperature"]
of_both = pytest.mark.parametrize(("name", "classes"), [(name, 2) for name in OF_TWO] + [(name, C) for name in NAMES])


def data(kind, classes=C):
    """Logits and labels of a kind, all of the same shape."""
    rng = np.random.default_rng(7)
    true = rng.normal(scale=1.5, size=(N, classes))
    labels = (true + rng.gumbel(size=true.shape)).argmax(axis=1).astype(np.int32)
    logits = true.copy()
    match kind:
        case "over-confident":
            logits = 3 * true + np.array([0, 1.5, -1, 0.5])[:classes]
        case "impossible classes":
            logits = 3 * true
            logits[np.arange(N) % 3 == 0, (labels[np.arange(N) % 3 == 0] + 1) % classes] = -np.inf
        case "a class never seen":
            labels = np.where(labels == classes - 1, 0, labels)
        case "separable":
            labels = true.argmax(axis=1)
        case "anti-correlated":
            labels = true.argmin(axis=1)
        case "certain and wrong":
            logits = 1e4 * true
    return logits.astype(np.float32), labels.astype(np.int32)


@functools.cache
def fitted_to(name, kind="over-confident", classes=C):
    return fit(name, *data(kind, classes))


def probabilities(logits):
    return special.softmax(np.asarray(logits, np.float64), axis=-1)


# --- what all have in common ---


@of_both
def test_overconfident_logits_are_corrected(name, classes):
    logits, labels = data("over-confident", classes)
    fitted = fitted_to(name, classes=classes)
    before, after = (float(outcomes(labels, logits=x).nll_N.mean()) for x in (logits, fitted.apply(logits)))
    assert (fitted.nll_before, fitted.nll_after) == pytest.approx((before, after), rel=1e-5)
    assert after < before - 0.05
    assert fitted.accepted
    assert fitted.converged
    assert not fitted.at_bound
    assert (fitted.classes, fitted.items) == (classes, N)
    if name != "bias":
        found = [outcomes(labels, logits=x) for x in (logits, fitted.apply(logits))]
        gap = [float(found.confidence_N.mean() - found.correct_N.mean()) for found in found]
        assert abs(gap[1]) < 0.6 * abs(gap[0])


@of_both
def test_a_fit_that_raises_the_loss_is_not_used(name, classes):
    logits, labels = data("calibrated", classes)
    fitted = fitted_to(name, "calibrated", classes)
    if fitted.accepted:
        assert outcomes(labels, logits=fitted.apply(logits)).nll_N.mean() <= fitted.nll_before + 1e-6
    else:
        np.testing.assert_array_equal(fitted.apply(logits), logits)
    if name == "scaling_binning" and classes == C:
        assert not fitted.accepted, "the example shows nothing"


@every
@pytest.mark.parametrize("kind", ["a class never seen", "separable", "anti-correlated", "certain and wrong"])
def test_no_data_make_an_impossible_prediction(name, kind):
    logits, labels = data(kind)
    fitted = fitted_to(name, kind)
    calibrated = fitted.apply(logits)
    found = outcomes(labels, logits=calibrated)  # raises for NaN
    assert np.isfinite(found.nll_N).all()
    assert np.isfinite(fitted.nll_after)
    if name in ONE_VS_REST and fitted.accepted:
        np.testing.assert_allclose(np.exp(calibrated).sum(axis=-1), 1, atol=1e-5)
        assert np.exp(calibrated).min() >= 0.99 / (N + 1) / C, "a label could have probability 0"
    if kind == "anti-correlated" and name in ("temperature", "vector", "platt", "beta", "isotonic"):
        assert found.confidence_N.mean() < outcomes(labels, logits=logits).confidence_N.mean()


@pytest.mark.parametrize("name", ["temperature", "temperature_bias", "vector", "scaling_binning"])
def test_a_bound_is_told(name):
    assert fitted_to(name, "separable").at_bound


@pytest.mark.parametrize("name", KEEP_IMPOSSIBLE)
def test_impossible_classes_stay_impossible(name):
    logits, _ = data("impossible classes")
    calibrated = np.asarray(fitted_to(name, "impossible classes").apply(logits))
    np.testing.assert_array_equal(np.isneginf(calibrated), np.isneginf(logits))
    assert not np.isnan(calibrated).any()


@every
def test_files_keep_every_bit(name, tmp_path):
    # Curves of several classes have as many points each as they need.
    for classes in (2, C) if name == "isotonic" else (2,) if name in OF_TWO else (C,):
        fitted = fitted_to(name, classes=classes)
        fitted.save(str(tmp_path / "deep" / "calibrator.json"))
        loaded = Fitted.load(str(tmp_path / "deep" / "calibrator.json"))
        logits = data("calibrated", classes)[0]
        np.testing.assert_array_equal(loaded.apply(logits), fitted.apply(logits))
        assert loaded.summary == fitted.summary
        assert (loaded.accepted, loaded.nll_before, loaded.nll_after) == (True, fitted.nll_before, fitted.nll_after)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["calibrator.json"]


# Not of those whose strength is chosen by every fifth item.
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("matrix_")])
def test_the_order_of_items_means_nothing(name):
    logits, labels = data("over-confident")
    order = np.random.default_rng(0).permutation(N)
    shuffled = fit(name, logits[order], labels[order])
    np.testing.assert_allclose(
        probabilities(shuffled.apply(logits)), probabilities(fitted_to(name).apply(logits)), atol=3e-3
    )


# Not those that choose a strength on every fifth item, nor those that are fitted as others are.
@pytest.mark.parametrize(
    "name",
    [
        slow_if("matrix" in name, name)
        for name in NAMES
        if not name.startswith("matrix_") and name not in ("temperature_bias", "bayesian_binning")
    ],
)
def test_weights_count_items_as_often(name):
    logits, labels = data("over-confident")
    weights = np.random.default_rng(0).multinomial(N, np.full(N, 1 / N))  # as many again: nothing compiles again
    index = np.repeat(np.arange(N), weights)
    repeated = fit(name, logits[index], labels[index])
    weighted, scaled = (fit(name, logits, labels, factor * weights) for factor in (1, 1e-3))
    assert (weighted.nll_before, weighted.nll_after) == pytest.approx((scaled.nll_before, scaled.nll_after), rel=1e-4)
    assert weighted.nll_before == pytest.approx(repeated.nll_before, rel=1e-5)
    assert weighted.nll_before != pytest.approx(fitted_to(name).nll_before, rel=1e-3)
    if name in ("structured_matrix", "platt", "histogram_equal_mass", "scaling_binning"):
        assert weighted.nll_after < weighted.nll_before - 0.05  # they count items too
    else:
        found, expected = (np.exp(jax.nn.log_softmax(one.apply(logits))) for one in (weighted, repeated))
        np.testing.assert_allclose(found, expected, atol=6e-3)


def test_weights_that_mean_nothing_are_errors():
    logits, labels = data("over-confident")
    for weights in (np.zeros(N), np.ones(N - 1), -np.ones(N), np.full(N, np.nan)):
        with pytest.raises(ValueError, match="weights"):
            fit("temperature", logits, labels, weights)
    with pytest.raises(ValueError, match="BBQ cannot be fitted with weights"):
        fit("bayesian_binning", logits, labels, np.ones(N))


# --- options that some items lack ---


def with_absent_options(value):
    """Every second item lacks an option that is not its label."""
    logits, labels = data("over-confident")
    absent = (np.arange(N) % 2 == 0)[:, None] & (np.arange(C) == ((labels + 1) % C)[:, None])
    return np.where(absent, np.float32(value), logits), labels


LOWEST = np.finfo(np.float32).min


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, -1e9) for name in NAMES if not name.startswith("matrix_")] + [("vector", -65504.0), ("vector", LOWEST)],
)
def test_any_mark_of_an_absent_option_is_minus_infinity(name, value):
    logits, labels = with_absent_options(-np.inf)
    expected = fitted_with_absent_options(name)
    marked, _ = with_absent_options(value)
    found = fit(name, marked, labels)
    assert found.nll_after == pytest.approx(expected.nll_after, abs=1e-4)
    assert (found.converged, found.at_bound) == (True, False)
    np.testing.assert_allclose(probabilities(found.apply(marked)), probabilities(expected.apply(logits)), atol=4e-3)


@functools.cache
def fitted_with_absent_options(name):
    return fit(name, *with_absent_options(-np.inf))


# --- classes that the items hardly have ---


@pytest.mark.parametrize(
    ("name", "seen"),
    [slow_if("matrix" in name, name, 0) for name in NAMES if not name.startswith("matrix_")]
    + [("vector", 1), slow_if(True, "matrix", 1), ("platt", 1)],
)
def test_a_class_that_the_items_lack_does_not_become_impossible(name, seen):
    rng = np.random.default_rng(3)
    logits = rng.normal(scale=1.5, size=(3 * N, C))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    # As many as elsewhere, so that nothing compiles again.
    fit_items = np.flatnonzero(labels[: 2 * N] != C - 1)[: N - seen]
    fit_items = np.append(fit_items, np.flatnonzero(labels[: 2 * N] == C - 1)[:seen])
    assert fit_items.size == N
    logits = (2 * logits).astype(np.float32)
    fitted = fit(name, logits[fit_items], labels[fit_items])
    later = slice(2 * N, 3 * N)
    before, after = (
        outcomes(labels[later], logits=x).nll_N.mean() for x in (logits[later], fitted.apply(logits[later]))
    )
    assert after < before + 0.1
    expected = [] if not CALIBRATORS[name].by_class else [C - 1]
    assert rare_classes(name, labels[fit_items], C).tolist() == expected


def test_rare_classes_have_the_mean_of_the_others():
    logits, labels = data("a class never seen")
    bias = fit("temperature_bias", logits, labels).parameters["bias"]
    assert bias[-1] == pytest.approx(bias[:-1].mean(), abs=1e-5)
    matrix = fitted_to("matrix", "a class never seen").parameters["scale"]
    temperature = fitted_to("temperature", "a class never seen").parameters["temperature"]
    own = matrix - np.eye(C) / temperature
    np.testing.assert_allclose(own[-1], own[:-1].mean(axis=0), atol=1e-4)


# --- labels with probability 0 ---


@pytest.mark.parametrize("name", TAKE_ZEROS)
def test_maps_of_one_class_are_fitted_to_exact_zeros(name):
    rng = np.random.default_rng(0)
    votes = rng.multinomial(10, [0.4, 0.3, 0.2, 0.1], size=N) / 10
    labels = (rng.random(N)[:, None] > np.cumsum(0.8 * votes + 0.2 / C, axis=1)).sum(axis=1).clip(0, C - 1)
    with np.errstate(divide="ignore"):
        logits = np.log(votes).astype(np.float32)
    assert np.isinf(outcomes(labels, logits=logits).nll_N).any()
    fitted = fit(name, logits, labels)
    assert fitted.accepted
    assert np.isfinite(outcomes(labels, logits=fitted.apply(logits)).nll_N).all()
    with pytest.raises(ValueError, match="probability 0, and temperature keeps that at 0: fit platt, beta or"):
        fit("temperature", logits, labels)


# --- acceptance ---


def test_rounding_is_no_reason_to_reject():
    parameters = {"temperature": np.float32(1.0)}
    for before, after, accepted in ((1.0, 1.0 + 3e-9, True), (0.002, 0.002 + 3e-9, True), (1.0, 1.0001, False)):
        fitted = Fitted("temperature", parameters, C, N, before, after, True, False)
        assert fitted.accepted is accepted
    assert Fitted("isotonic", parameters, C, N, np.inf, 3.0, True, False).accepted is True


# --- errors ---


@pytest.mark.parametrize("shape", [(C,), (2, C, 3, 3), (5, 2, C)])
@pytest.mark.parametrize("name", ["temperature", "ensemble_temperature", "isotonic"])
def test_only_rows_of_classes_are_calibrated(name, shape):
    with pytest.raises(ValueError, match=r"must be \[items, classes\]|fitted to 4 classes, not 2"):
        fitted_to(name).apply(np.zeros(shape, np.float32))


def test_unknown_names_and_wrong_classes_are_errors():
    logits, labels = data("over-confident")
    with pytest.raises(ValueError, match="unknown calibrator 'temprature'; known are temperature, "):
        fit("temprature", logits, labels)
    for name in ("temperature", "isotonic"):
        with pytest.raises(ValueError, match=f"calibrator {name} was fitted to 4 classes, not 3"):
            fitted_to(name).apply(logits[:, :3])
    with pytest.raises(ValueError, match="label 4 of item"):
        fit("temperature", logits, labels + 1)


def test_labels_that_logits_rule_out_are_errors():
    logits, labels = data("over-confident")
    logits[5, labels[5]] = -np.inf
    with pytest.raises(ValueError, match=r"label of item 5 \(1 in all\) has logit -inf"):
        fit("temperature", logits, labels)


RECORD = {
    "name": "temperature",
    "parameters": {"temperature": 2.0, "converged": True, "at_bound": False},
    "classes": C,
    "items": N,
    "nll_before": 1.0,
    "nll_after": 0.9,
    "converged": True,
    "at_bound": False,
}
HISTOGRAM = {**RECORD, "name": "histogram", "classes": 2}
GARBAGE = {
    "empty": "",
    "no JSON": "{",
    "binary": b"\x93NUMPY\xff\xfe",
    "a list": "[1, 2]",
    "a number": "3",
    "null": "null",
    "no entries": "{}",
    "an entry too many": json.dumps({**RECORD, "more": 1}),
    "an entry too few": json.dumps({key: value for key, value in RECORD.items() if key != "items"}),
    "unknown name": json.dumps({**RECORD, "name": "temprature"}),
    "a list for a name": json.dumps({**RECORD, "name": ["temperature"]}),
    "parameters of another": json.dumps({**RECORD, "name": "isotonic"}),
    "no parameters": json.dumps({**RECORD, "parameters": {}}),
    "a list for parameters": json.dumps({**RECORD, "parameters": [2.0]}),
    "words for numbers": json.dumps({**RECORD, "parameters": {"temperature": "two"}}),
    "temperature 0": json.dumps({**RECORD, "parameters": {"temperature": 0.0}}),
    "temperature NaN": json.dumps({**RECORD, "parameters": {"temperature": float("nan")}}),
    "words for classes": json.dumps({**RECORD, "classes": "four"}),
    "no classes": json.dumps({**RECORD, "classes": 0}),
    "words for the loss": json.dumps({**RECORD, "nll_after": "low"}),
    "temperature -1": json.dumps({**RECORD, "parameters": {"temperature": -1.0}}),
    "temperature true": json.dumps({**RECORD, "parameters": {"temperature": True}}),
    "temperature in quotes": json.dumps({**RECORD, "parameters": {"temperature": "2"}}),
    "temperature in a list": json.dumps({**RECORD, "parameters": {"temperature": [2.0]}}),
    "temperature beyond float32": json.dumps({**RECORD, "parameters": {"temperature": 1e300}}),
    "temperature of 400 digits": json.dumps(RECORD).replace("2.0", "1" + 400 * "0"),
    "temperature of 5,000 digits": json.dumps(RECORD).replace("2.0", "1" + 5000 * "0"),
    "loss of 400 digits": json.dumps(RECORD).replace("0.9", "1" + 400 * "0"),
    "deep nesting": json.dumps(RECORD).replace("2.0", 20_000 * "[" + 20_000 * "]"),
    "nesting that Python reads": json.dumps(RECORD).replace("2.0", 500 * "[" + 500 * "]"),
    "a negative loss": json.dumps({**RECORD, "nll_after": -1}),
    "half an item": json.dumps({**RECORD, "items": 0.5}),
    "true for items": json.dumps({**RECORD, "items": True}),
    "a number for converged": json.dumps({**RECORD, "converged": 1}),
    "a word for the checkpoint": json.dumps({**RECORD, "checkpoint": "7"}),
    "an unknown parameter": json.dumps({**RECORD, "parameters": {"temperature": 2.0, "more": 1}}),
    "a billion classes": json.dumps(
        {**RECORD, "name": "bias", "classes": 10**9, "parameters": {"scale": [1], "bias": [0]}}
    ),
    "a matrix with a short row": json.dumps(
        {**RECORD, "name": "matrix", "parameters": {"scale": [[1, 0, 0, 0]] * 3 + [[1]], "bias": [0] * C}}
    ),
    "edges that fall": json.dumps(
        {
            **RECORD,
            "name": "histogram",
            "classes": 2,
            "parameters": {"edges": [[0.5, 0.2]], "values": [[0, 1, 1]], "items": N},
        }
    ),
    "a value too few": json.dumps(
        {**RECORD, "name": "histogram", "classes": 2, "parameters": {"edges": [[0.5]], "values": [[0]], "items": N}}
    ),
    "two numbers of items": json.dumps(
        {
            **{**RECORD, "name": "histogram", "classes": 2},
            "parameters": {"edges": [[0.5]], "values": [[0, 1]], "items": N + 1},
        }
    ),
    "shares that sum to 2": json.dumps(
        {**RECORD, "name": "ensemble_temperature", "parameters": {"temperature": 2, "weights": [1, 1, 0]}}
    ),
    "too few biases": json.dumps({**RECORD, "name": "vector", "parameters": {"scale": [1, 2, 3], "bias": [0, 0, 0]}}),
}


def test_a_changed_calibrator_is_refused(tmp_path):
    """One digit would be another temperature."""
    path = tmp_path / "temperature.json"
    fitted_to("temperature").save(path)
    text = path.read_text()
    place = text.index('"temperature": ', text.index("parameters")) + len('"temperature": ')
    path.write_text(f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}")
    with pytest.raises(UserError, match="fit it again"):
        Fitted.load(path)


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_is_never_a_calibrator(what, tmp_path):
    path = tmp_path / "calibrator.json"
    content = GARBAGE[what]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        Fitted.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def mutations(value, rng):
    """A JSON value with one part replaced."""
    replacements = [
        None,
        True,
        -1,
        0,
        1e300,
        float("nan"),
        float("inf"),
        10**400,
        "2",
        [],
        {},
        [[[]]],
        [None],
        1e-50,
        7,
    ]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = list(value)[rng.integers(len(value))]
        if rng.random() < 0.1:
            return {name: inner for name, inner in value.items() if name != key}
        return {**value, key: mutations(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.integers(len(value))
        if rng.random() < 0.2:
            return value[:place] + value[place + 1 :]
        return [*value[:place], mutations(value[place], rng), *value[place + 1 :]]
    if isinstance(value, str) and rng.random() < 0.5:
        return list(CALIBRATORS)[rng.integers(len(CALIBRATORS))]
    return replacements[rng.integers(len(replacements))]


def test_damaged_files_are_refused_or_still_calibrators(tmp_path):
    rng = np.random.default_rng(0)
    logits = np.concatenate([data("calibrated")[0][:8], np.float32([[0, 0, -1e9, -np.inf]])])
    path = tmp_path / "calibrator.json"
    kept = 0
    for name in ("temperature", "matrix", "platt", "isotonic", "scaling_binning", "ensemble_temperature"):
        fitted_to(name).save(path)
        record = json.loads(path.read_text())
        for _ in range(60):
            path.write_text(json.dumps(mutations(record, rng)))
            try:
                loaded = Fitted.load(path)
            except UserError:
                continue
            kept += 1
            if loaded.classes == C:
                calibrated = np.asarray(loaded.apply(logits))
                assert calibrated.shape == logits.shape
                np.testing.assert_allclose(probabilities(calibrated).sum(axis=1), 1, rtol=1e-4)
    assert 5 < kept < 300


def test_what_garbage_differs_from_is_accepted(tmp_path):
    (tmp_path / "calibrator.json").write_text(json.dumps(RECORD))
    loaded = Fitted.load(tmp_path / "calibrator.json")
    np.testing.assert_array_equal(loaded.apply(np.float32([[2, 0, 1, -np.inf]])), [[1, 0, 0.5, -np.inf]])
    with pytest.raises(UserError, match="no such calibrator"):
        Fitted.load(tmp_path / "other.json")


# --- affine maps ---


def affine_reference(name, logits, labels, temperature, strength):
    """The lowest penalized loss by scipy in float64, and the objective as a function of W (of z) and b."""
    centred = logits.astype(np.float64) - logits.astype(np.float64).mean(axis=1, keepdims=True)
    n, c = centred.shape
    off = ~np.eye(c, dtype=bool)

    def loss(scale_CC, bias_C):
        mapped = centred @ scale_CC.T + bias_C
        return (special.logsumexp(mapped, axis=1) - mapped[np.arange(n), labels]).mean()

    def objective(scale_CC, bias_C):
        total = loss(scale_CC, bias_C)
        away = scale_CC * temperature - np.eye(c)
        diagonal, others = (np.diag(away) ** 2).sum(), (away[off] ** 2).sum()
        match name:
            case "structured_matrix":
                total += c / n * ((bias_C**2).sum() + diagonal) + c * (c - 1) / n * others
            case "matrix_odir":
                total += strength * (others / (c * (c - 1)) + (bias_C**2).mean())
        return total

    if name == "bias":
        basis = np.zeros((0, c, c))
    elif name == "temperature_bias":
        basis = np.eye(c)[None]
    elif "vector" in name:
        basis = np.stack([np.diag(row) for row in np.eye(c)])
    else:
        basis = np.eye(c * c).reshape(-1, c, c)
    start = np.eye(c) if name == "bias" else np.eye(c) / temperature

    def unpack(theta):
        return start + np.tensordot(theta[c:], basis, axes=1), theta[:c]

    found = optimize.minimize(lambda theta: objective(*unpack(theta)), np.zeros(c + len(basis)), method="BFGS")
    return found.fun, objective


@pytest.mark.parametrize("name", KEEP_IMPOSSIBLE[1:])
def test_affine_fits_reach_the_optimum(name):
    logits, labels = data("over-confident")
    parameters = fitted_to(name).parameters
    temperature = float(fitted_to("temperature").parameters["temperature"])
    strength = parameters.get("strength")
    best, objective = affine_reference(name, logits, labels, temperature, strength)
    scale = np.asarray(parameters["scale"], np.float64)
    found = objective(np.diag(np.broadcast_to(scale, C)) if scale.ndim < 2 else scale, parameters["bias"])
    assert best - 1e-5 <= found <= best + 1e-5
    assert abs(parameters["bias"].sum()) < 1e-4


@pytest.mark.parametrize("name", ["structured_vector", "matrix_ridge"])
def test_penalties_that_are_not_fitted_here(name):
    how = CALIBRATORS[name].fit.keywords
    rng = np.random.default_rng(0)
    weights = {"diagonal": rng.normal(size=C), "bias": rng.normal(size=C)}
    squares = (weights["diagonal"] ** 2).sum() + (weights["bias"] ** 2).sum()
    if name == "structured_vector":
        assert how["free"] == ("diagonal", "bias")
        expected = 0.5 * C / N * squares
    else:
        weights["off_diagonal"] = rng.normal(size=(C, C))  # of which the diagonal says nothing
        expected = 0.5 * (squares + (weights["off_diagonal"][~np.eye(C, dtype=bool)] ** 2).sum())
    weights = {part: jnp.asarray(values) for part, values in weights.items()}
    assert float(how["penalty"](weights, N, 0.5)) == pytest.approx(expected, rel=1e-5)


def test_free_parameters_of_more_general_maps_lower_the_loss():
    nll = {name: fitted_to(name).nll_after for name in KEEP_IMPOSSIBLE}
    for less, more in (
        ("temperature", "temperature_bias"),
        ("bias", "temperature_bias"),
        ("temperature_bias", "vector"),
        ("vector", "matrix"),
        ("structured_matrix", "matrix"),
    ):
        assert nll[more] < nll[less] + 1e-6


def test_the_scale_of_logits_means_nothing_to_maps_that_scale():
    logits, labels = data("over-confident")
    for name in ("temperature_bias", "vector", "structured_matrix"):
        expected = probabilities(fitted_to(name).apply(logits))
        for scale in (1e-3, 1e3):
            scaled = fit(name, logits * np.float32(scale), labels)
            np.testing.assert_allclose(probabilities(scaled.apply(logits * np.float32(scale))), expected, atol=2e-3)


@pytest.mark.parametrize("name", ["temperature", "vector", "matrix", "isotonic"])
def test_factors_are_calibrated_like_their_product(name):
    rng = np.random.default_rng(0)
    factors = FactoredLogits(rng.normal(size=(50, 3)).astype(np.float32), rng.normal(size=(C, 3)).astype(np.float32))
    calibrated = fitted_to(name).apply(factors)
    assert isinstance(calibrated, FactoredLogits) == (name not in ("matrix", "isotonic"))
    labels = rng.integers(C, size=50)
    found = outcomes(labels, logits=calibrated)
    expected = outcomes(labels, logits=fitted_to(name).apply(factors.hidden_ND @ factors.output_CD.T))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_fits_of_factors_in_chunks_are_those_of_their_product(monkeypatch):
    rng = np.random.default_rng(0)
    hidden, output = rng.normal(size=(N, 3)).astype(np.float32), 3 * rng.normal(size=(C, 3)).astype(np.float32)
    labels = (hidden @ output.T / 2 + rng.gumbel(size=(N, C))).argmax(axis=1)
    expected = fit("temperature_bias", hidden @ output.T, labels)
    monkeypatch.setattr(chunking, "CHUNK_NUMBERS", 100 * C)
    jax.clear_caches()
    found = fit("temperature_bias", FactoredLogits(hidden, output), labels)
    assert found.nll_after == pytest.approx(expected.nll_after, abs=1e-5)
    np.testing.assert_allclose(found.parameters["bias"], expected.parameters["bias"], atol=2e-3)


# --- ensemble temperature ---


def test_the_ensemble_is_a_mixture_that_does_no_worse_than_temperature():
    logits, labels = data("certain and wrong")
    fitted = fitted_to("ensemble_temperature", "certain and wrong")
    weights, temperature = fitted.parameters["weights"], float(fitted.parameters["temperature"])
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert fitted.nll_after <= fitted_to("temperature", "certain and wrong").nll_after + 1e-5
    parts = [probabilities(logits / temperature), probabilities(logits), np.full((N, C), 1 / C)]
    mixture = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    np.testing.assert_allclose(np.exp(fitted.apply(logits)), mixture, atol=1e-5)

    # EM's fixed point is the optimum: no other weights are better.
    likelihood = np.stack([part[np.arange(N), labels] for part in parts], axis=1)
    gradient = (likelihood / (likelihood @ weights)[:, None]).mean(axis=0)
    assert (gradient < 1 + 1e-3).all()


# --- one class against the rest ---


def test_log_odds_are_exact_where_float32_rounds_to_1():
    logits = np.float32([[30, 0, 0], [0, 0.5, 1], [50, 1, -np.inf]])
    exact = probabilities(logits)
    expected = np.stack([special.logit(exact[1, c]) for c in range(3)])
    found = np.asarray(log_odds(jnp.asarray(logits)))
    np.testing.assert_allclose(found[1], expected, rtol=1e-5)
    np.testing.assert_allclose(found[0], [30 - np.log(2), -30, -30], rtol=1e-6)
    np.testing.assert_allclose(found[2], [49, -49, -80], rtol=1e-6)


def test_platt_is_the_optimum_of_its_soft_targets():
    logits, labels = data("over-confident", 2)
    odds = (logits[:, 1] - logits[:, 0]).astype(np.float64)
    positives = (labels == 1).sum()
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (N - positives + 2))

    def loss(weights):
        scores = weights[0] * odds + weights[1]
        return (np.logaddexp(0, scores) - targets * scores).mean()

    expected = optimize.minimize(loss, np.array([1.0, 0.0]), method="BFGS", options={"gtol": 1e-8}).x
    np.testing.assert_allclose(fitted_to("platt", classes=2).parameters["weights"][0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["over-confident", "anti-correlated", "calibrated"])
def test_beta_is_the_best_rising_map(kind):
    logits, labels = data(kind, 2)
    odds = (logits[:, 1] - logits[:, 0]).astype(np.float64)
    features = np.stack([special.log_expit(odds), -special.log_expit(-odds), np.ones(N)], axis=1)

    def loss(weights):
        scores = features @ weights
        return (np.logaddexp(0, scores) - (labels == 1) * scores).mean()

    expected = optimize.minimize(
        loss, np.array([0.5, 0.5, 0.0]), method="L-BFGS-B", bounds=[(0, None), (0, None), (None, None)]
    )
    weights = np.asarray(fitted_to("beta", kind, 2).parameters["weights"][0], np.float64)
    assert (weights[:2] >= 0).all()
    assert loss(weights) == pytest.approx(expected.fun, abs=2e-5)


# Histograms' steps follow the data, wherever they go.
@pytest.mark.parametrize("name", ["platt", "beta", "isotonic", "scaling_binning"])
def test_of_two_classes_the_calibrated_map_rises(name):
    margin = np.linspace(-12, 12, 400).astype(np.float32)
    found = np.asarray(fitted_to(name, classes=2).apply(np.stack([np.zeros_like(margin), margin], axis=1)))[:, 1]
    assert (np.diff(found) >= -1e-6).all()


def mixed(p):
    """What one item more, spread evenly over two classes, makes of a probability."""
    return (p * N + 0.5) / (N + 1)


def test_histogram_reads_items_from_the_bins_they_were_counted_in():
    """Also those on an edge, such as votes."""
    p = (np.arange(N) % 14 + 1) / 15
    logits = np.log(np.stack([1 - p, p], axis=1)).astype(np.float32)
    labels = np.random.default_rng(0).integers(2, size=N)
    used = np.asarray(jax.nn.softmax(logits, axis=-1))[:, 1]
    bins = np.searchsorted(np.float32(np.arange(1, 15) / 15), used)
    assert (np.float32(np.arange(1, 15) / 15)[:, None] == used).any(), "nothing is on an edge"
    share = np.bincount(bins, labels, 15) / np.maximum(np.bincount(bins, None, 15), 1)
    fitted = fit("histogram", logits, labels)
    assert fitted.accepted
    np.testing.assert_allclose(np.exp(fitted.apply(logits))[:, 1], mixed(share[bins]), rtol=1e-5)


def test_an_empty_bin_of_a_histogram_keeps_its_centre():
    logits, labels = data("separable", 2)
    fitted = fit("histogram", np.clip(logits, -0.1, 0.1), labels)
    far = np.log(np.float32([[0.98, 0.02], [0.25, 0.75]]))
    np.testing.assert_allclose(np.exp(fitted.apply(far))[:, 1], mixed(np.array([0.5 / 15, 11.5 / 15])), rtol=1e-5)


def test_equal_mass_bins_hold_equally_many():
    logits, labels = data("over-confident", 4)
    parameters = fit("histogram_equal_mass", logits, labels).parameters
    assert [len(edges) for edges in parameters["edges"]] == [14] * 4
    p = np.asarray(jax.nn.softmax(logits, axis=-1))[:, 2]
    bins = np.searchsorted(parameters["edges"][2], p)
    assert np.bincount(bins).tolist() == pytest.approx([N / 15] * 15, abs=2)
    shares = np.bincount(bins, labels == 2) / np.bincount(bins)
    np.testing.assert_allclose(parameters["values"][2], shares, rtol=1e-6)


def test_bayesian_binning_is_its_formula():
    logits, labels = data("over-confident", 2)
    p = np.asarray(jax.nn.softmax(logits, axis=-1))[:, 1]
    points = np.linspace(0.01, 0.99, 57).astype(np.float32)
    scores, predictions = [], []
    for size in range(1, int(10 * N ** (1 / 3)) + 1):
        edges = equal_mass(p, size).all_edges()
        number, log_likelihood, means = len(edges) - 1, 0.0, []
        for low, high in itertools.pairwise(edges):
            is_in = (p > low) & (p <= high) | (low == 0) & (p == 0)
            ones, zeros = labels[is_in].sum(), (1 - labels[is_in]).sum()
            centre = min(max((low + high) / 2, 0.005), 0.995)
            a, b = 2 / number * centre, 2 / number * (1 - centre)
            log_likelihood += special.betaln(ones + a, zeros + b) - special.betaln(a, b)
            means.append((ones + a) / (ones + zeros + a + b))
        scores.append(log_likelihood)
        predictions.append(np.array(means)[np.searchsorted(edges[1:-1], points)])
    expected = special.softmax(scores) @ np.array(predictions)
    found = np.exp(fitted_to("bayesian_binning", classes=2).apply(np.log(np.stack([1 - points, points], axis=1))))
    away = np.abs(points[:, None] - equal_mass(p, N // 2).all_edges()).min(axis=1) > 1e-6
    np.testing.assert_allclose(found[away, 1], mixed(expected)[away], rtol=1e-4)


def test_scaling_binning_has_few_outputs_that_keep_the_scaled_mean():
    logits, _ = data("over-confident", 2)
    found = np.exp(np.asarray(fitted_to("scaling_binning", classes=2).apply(logits)))[:, 1]
    assert len(np.unique(found)) <= 15
    scaled = np.exp(np.asarray(jax.nn.log_softmax(fitted_to("temperature", classes=2).apply(logits), axis=-1)))[:, 1]
    assert found.mean() == pytest.approx(mixed(scaled.mean()), abs=1e-5)


def test_rows_in_which_every_class_gets_0_become_uniform():
    logits, _ = data("calibrated")
    fitted = fit("isotonic", logits, logits.argmax(axis=1))
    found = np.exp(fitted.apply(np.zeros((1, C), np.float32)))  # 1/4 each: for no class high enough
    np.testing.assert_allclose(found, 1 / C, atol=1e-6)
