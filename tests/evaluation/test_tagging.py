"""Entities are counted as seqeval counts them."""

import warnings

import numpy as np
import pytest
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from seqeval.scheme import BILOU, IOBES

from lm.errors import UserError
from lm.evaluation.tagging import entity_metrics, entity_scheme

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def sentences(number=60, seed=0):
    """Random tags, ill-formed ones among them, and predictions that agree with three in four."""
    random = np.random.default_rng(seed)
    gold = [random.choice(TAGS, size=length, p=[0.4, 0.15, 0.2, 0.15, 0.1]) for length in random.integers(1, 9, number)]
    guessed = [np.where(random.random(len(tags)) < 0.75, tags, random.choice(TAGS, len(tags))) for tags in gold]
    return [tags.tolist() for tags in gold], [tags.tolist() for tags in guessed]


def test_metrics_equal_seqeval():
    gold, predicted = sentences()
    found = entity_metrics(gold, predicted)
    report = classification_report(gold, predicted, output_dict=True)
    for kind in ("PER", "LOC"):
        for name, theirs in (("f1", "f1-score"), ("precision", "precision"), ("recall", "recall")):
            np.testing.assert_allclose(found[f"{name}/{kind}"].value, report[kind][theirs], rtol=1e-12)
    for name, function in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        np.testing.assert_allclose(found[name].value, function(gold, predicted), rtol=1e-12)
    assert list(found)[:4] == ["f1", "precision", "recall", "token_accuracy"]


def test_a_resample_is_of_whole_sentences():
    gold, predicted = sentences(12)
    resampled_R = entity_metrics(gold, predicted)["f1"].resampled(5, seed=4)
    random = np.random.default_rng(4)
    for value in resampled_R:
        index = random.integers(12, size=12)
        np.testing.assert_allclose(value, f1_score([gold[i] for i in index], [predicted[i] for i in index]), rtol=1e-12)


def bioes(entities, length, letters="BIES"):
    """Tags of entities, each a type, a first and a last word."""
    begin, inside, end, single = letters
    tags = ["O"] * length
    for kind, first, last in entities:
        for place in range(first, last + 1):
            letter = begin if place == first else end if place == last else inside
            tags[place] = f"{single if first == last else letter}-{kind}"
    return tags


def random_entities(length, random):
    """Entities that do not overlap, adjacent ones of a type among them."""
    place, found = 0, set()
    while place < length:
        size = int(random.integers(1, 4))
        if random.random() < 0.7 and place + size <= length:
            found.add((str(random.choice(["PER", "LOC"])), place, place + size - 1))
        place += size
    return found


@pytest.mark.parametrize(
    ("letters", "scheme", "theirs"),
    [("BIES", "BIOES", IOBES), ("BILU", "BILOU", BILOU), ("BMES", "BMES", None), ("BMEW", "BMES", None)],
)
def test_schemes_give_the_same_entities(letters, scheme, theirs):
    random = np.random.default_rng(0)
    lengths = random.integers(1, 12, 80)
    gold = [random_entities(length, random) for length in lengths]
    guessed = [entities if random.random() < 0.5 else random_entities(8, random) for entities in gold]
    lengths = np.maximum(lengths, 8)
    tagged = [
        [bioes(entities, length, letters) for entities, length in zip(part, lengths, strict=True)]
        for part in (gold, guessed)
    ]
    assert entity_scheme({tag for part in tagged for tags in part for tag in tags}) == scheme
    found = {name: metric.value for name, metric in entity_metrics(*tagged).items()}
    right = sum(len(one & other) for one, other in zip(gold, guessed, strict=True))
    assert found["precision"] == right / sum(map(len, guessed))
    assert found["recall"] == right / sum(map(len, gold))
    if theirs:
        assert found["f1"] == pytest.approx(f1_score(*tagged, mode="strict", scheme=theirs), rel=1e-12)


def test_a_prefix_alone_is_a_tag_of_the_only_type():
    assert entity_scheme(("B", "I", "O")) == "BIO"
    found = entity_metrics([["B", "I", "O", "B"]], [["B", "I", "O", "O"]])
    assert found["recall/entity"].value == found["recall"].value == 0.5


def test_words_of_chinese_are_segments():
    found = entity_metrics([["B", "E", "S", "B", "M", "E"]], [["B", "E", "B", "E", "B", "E"]])
    assert found["precision"].value == found["recall"].value == 1 / 3


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        (("O", "I-PER"), "BIO"),
        (("B-PER", "I-PER"), "BIO"),
        (("O", "S-PER"), "BIOES"),
        (("O", "U-PER", "B-PER"), "BILOU"),
        (("O", "B-E-1", "I-E-1"), "BIO"),
        (("O",), "BIO"),
        (("NOUN", "VERB"), None),
        (("O", "NOUN"), None),
        (("B", "M", "S"), None),
        (("B", "M", "E", "S"), "BMES"),
        (("B", "E", "S", "V"), None),
        (("O", "X-adj", "Y.noun"), None),
        (("N_NN", "V_VM"), None),
        (("S-Nom", "E-Acc", "V"), None),
    ],
)
def test_the_scheme_is_recognized(tags, scheme):
    assert entity_scheme(tags) == scheme


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (("O", "B-PER", "E-PER", "L-LOC"), "mix schemes, with the prefixes B, E, L"),
        (("O", "B-PER", "M-PER", "I-PER"), "mix schemes"),
        (("O", "B-PER", "PER"), "B-PER marks an entity and PER does not, but is not O"),
        (("O", "B-PER", "_"), "B-PER marks an entity and _ does not"),
        (("O", "I", "B-PER"), "marks an entity and I does not"),
        (("O", "B_PER", "I_PER"), "B_PER seems to mark an entity: write such tags as B-TYPE"),
        (("O", "b-per", "i-per"), "b-per seems to mark an entity"),
        (("o", "PER-B", "PER-I"), "PER-B seems to mark an entity"),
        (("O", "PER_I"), "PER_I seems to mark an entity"),
        (("O", "B-", "I-"), "B- seems to mark an entity"),
    ],
)
def test_mixtures_are_refused(tags, words):
    with pytest.raises(UserError, match=words):
        entity_scheme(tags)


def test_borders_and_types_must_both_be_right():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC"]]
    predicted = [["B-PER", "O", "O", "B-PER"], ["O", "B-LOC"]]
    found = {name: metric.value for name, metric in entity_metrics(gold, predicted).items()}
    assert found["precision"] == found["recall"] == pytest.approx(1 / 3)
    assert found["token_accuracy"] == pytest.approx(4 / 6)
    assert (found["f1/PER"], found["precision/LOC"], found["recall/LOC"]) == (0, 1, 0.5)


def test_nothing_to_find_gives_zero_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = entity_metrics([["O", "O"], []], [["O", "O"], []])
        assert (found["f1"].value, found["token_accuracy"].value) == (0, 1)
        assert set(found) == {"f1", "precision", "recall", "token_accuracy"}


def test_wrong_input_is_named():
    with pytest.raises(UserError, match="1 for 2 sentences"):
        entity_metrics([["O"], ["O"]], [["O"]])
    with pytest.raises(UserError, match="1 for 2 in sentence 2"):
        entity_metrics([["O"], ["O", "O"]], [["O"], ["O"]])
