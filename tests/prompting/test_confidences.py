"""Confidences from samples: hand-computed values, and samples that chose an answer never judge it."""

import math

import numpy as np
import pytest

from lm.errors import UserError
from lm.prompting.answer_confidence import (
    ChosenAnswer,
    WrittenAnswer,
    choose_greedy,
    choose_majority,
    meanings,
    of_samples,
    of_writing,
    p_true,
    probability_weights,
    same_by_entailment,
    same_text,
    same_vector,
    semantic_entropy,
    share_of_samples,
    stated_confidence,
    within_reach,
)


def written(text, *probabilities):
    return WrittenAnswer(text, tuple(math.log(p) for p in probabilities or (0.5,)))


def texts(*values):
    return tuple(written(value) for value in values)


def test_the_probability_of_an_answer_and_of_its_tokens():
    found = of_writing(written("a b", 0.5, 0.125))
    assert {name: math.exp(value) for name, value in found.items()} == pytest.approx(
        {"sequence_probability": 0.0625, "token_probability": 0.25}
    )
    assert of_writing(WrittenAnswer("", ())) == {"sequence_probability": 0.0, "token_probability": 0.0}


def test_the_greedy_answer_is_judged_by_all_samples():
    samples = texts("a", "b")
    assert choose_greedy(written("c"), samples) == ChosenAnswer(written("c"), samples)


def test_samples_that_chose_an_answer_never_judge_it():
    voters, judges = texts("Paris.", "the paris", "Rome"), texts("Rome", "Rome", "Rome")
    chosen = choose_majority([*voters, *judges])
    assert chosen.answer in voters[:2]
    assert chosen.judges == judges
    assert math.exp(of_samples(chosen, None)["agreement"]) == pytest.approx(0.5 / 4)


def test_the_majority_counts_words_and_then_probability():
    voters = [written("Paris", 0.1), written("the Paris", 0.2), written("Rome", 0.9)]
    assert choose_majority([*voters, *texts("x", "x", "x")]).answer == voters[1]
    assert choose_majority([written("a", 0.3), written("b", 0.4), *texts("x", "x")]).answer.text == "b"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_or_an_odd_number_of_samples_is_an_error(count):
    with pytest.raises(UserError, match="draw"):
        choose_majority(texts(*["a"] * count))
    with pytest.raises(UserError, match="draw more"):
        choose_greedy(written("a"), ())
    with pytest.raises(UserError, match="two or more"):
        of_samples(choose_greedy(written("a"), texts("a")), None)


def test_entropy_of_clusters_by_hand():
    cluster_K = np.array([0, 0, 1, 2])
    expected = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert semantic_entropy(cluster_K) == pytest.approx(expected)
    weight_K = np.array([0.1, 0.2, 0.3, 0.4])
    expected = -(0.3 * math.log(0.3) * 2 + 0.4 * math.log(0.4))
    assert semantic_entropy(cluster_K, weight_K) == pytest.approx(expected)
    assert semantic_entropy(np.zeros(3, int)) == 0


def test_copies_share_the_weight_of_their_text():
    weight_K = probability_weights([written("a", 0.4), written("a", 0.4), written("b", 0.1)])
    assert weight_K == pytest.approx([0.4, 0.4, 0.2])
    tiny = [WrittenAnswer("a", (-2000.0,)), WrittenAnswer("b", (-2000.0 + math.log(3),))]
    assert probability_weights(tiny) == pytest.approx([0.25, 0.75])


def test_confidences_of_samples_by_hand():
    judges = (written("Rome", 0.2), written("rome!", 0.1), written("Paris", 0.3), written("City of Rome", 0.4))
    chosen = ChosenAnswer(written("Rome", 0.2), judges)

    def same(values):
        kinds = np.array(["Rome" in value.title() for value in values])
        return kinds[:, None] == kinds

    found = {name: math.exp(value) for name, value in of_samples(chosen, same).items()}
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found == pytest.approx(
        {
            "agreement": 2.5 / 5,
            "semantic_agreement": 3.5 / 5,
            "semantic_probability": 0.7,
            "semantic_entropy": 1 - entropy / math.log(4),
        }
    )


def test_the_order_of_samples_changes_nothing():
    random = np.random.default_rng(0)
    judges = [written(value, p) for value, p in zip("aabbcd", random.uniform(0.1, 1, 6), strict=True)]
    chain = {("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")}  # not transitive

    def same(values):
        return np.array([[one == other or (one, other) in chain for other in values] for one in values])

    expected = of_samples(ChosenAnswer(written("a"), tuple(judges)), same)
    for _ in range(10):
        shuffled = tuple(judges[place] for place in random.permutation(6))
        assert of_samples(ChosenAnswer(written("a"), shuffled), same) == pytest.approx(expected)


def test_the_chosen_answer_joins_no_clusters():
    # It is like both samples, which are not like each other.
    def same(values):
        return np.array([[one == other or "x" in (one, other) for other in values] for one in values])

    found = meanings(ChosenAnswer(written("x"), texts("a", "b")), same)
    assert len(set(found.cluster_K)) == 2
    assert found.agrees_K.all()


def test_texts_vectors_and_entailment_that_mean_the_same():
    assert same_text(["The cat.", "cat", "cats"]).tolist() == [[True, True, False]] * 2 + [[False, False, True]]
    vectors_AD = np.array([[2.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.0, 0.0]])
    expected = np.eye(4, dtype=bool)
    expected[:2, :2] = True
    np.testing.assert_array_equal(same_vector(vectors_AD, 0.9), expected)
    asked = []

    def entails(pairs):
        asked.extend(pairs)
        return [(one, other) != ("b", "a") and "c" not in (one, other) for one, other in pairs]

    values = ["a", "b", "c", "d", "a"]
    same_AA = same_by_entailment(values, entails)
    assert len(asked) == 12
    assert not same_AA[0, 1]  # in one direction alone
    assert same_AA[0, 3]
    assert same_AA[0, 4]
    np.testing.assert_array_equal(same_AA, same_AA.T)


def test_samples_cannot_show_certainty():
    assert share_of_samples(np.ones(4, bool)) == pytest.approx(0.9)
    assert share_of_samples(np.zeros(4, bool)) == pytest.approx(0.1)
    assert (within_reach(1.0, 4), within_reach(0.0, 4), within_reach(0.3, 4)) == pytest.approx((0.9, 0.1, 0.3))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90%", 0.9),
        (" 90 %\nBecause", 0.9),
        ("90 percent.", 0.9),
        ("90", 0.9),
        ("0.9", 0.9),
        (".25", 0.25),
        ("0.9%", 0.009),
        ("100%", 0.995),
        ("0", 0.005),
        ("1.0", 0.995),
        ("1%", 0.01),
        ("1", None),
        ("ninety", None),
        ("", None),
        ("\n", None),
        ("150%", None),
        ("-5%", None),
        ("80-90%", None),
        ("about 90%", None),
        ("nan", None),
        ("1e1", None),
        ("90%%", None),
    ],
)
def test_a_stated_confidence_is_read_strictly(text, expected):
    found = stated_confidence(text)
    assert found == (None if expected is None else pytest.approx(expected))


def test_p_true_is_renormalized():
    assert p_true(math.log(0.03), math.log(0.01)) == pytest.approx(math.log(0.75))
    assert p_true(-2000.0, -2000.0) == pytest.approx(math.log(0.5))
