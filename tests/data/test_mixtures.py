"""Mixtures and permutations: exact shares, no row lost, and batches that are functions of their step."""

from collections import Counter

import numpy as np
import pytest

from lm.data.config import DataConfig, TokenizerConfig
from lm.data.corpora import open_corpus
from lm.data.mixtures import Mixture, parse_mixture
from lm.data.permutation import permuted
from lm.data.store import TokenStore
from lm.data.windows import TrainBatches, shuffled_rows
from lm.errors import UserError

LENGTH = 8


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 17, 1000, 4097])
def test_a_permutation_is_a_bijection(size):
    for key in ((0, 0), (0, 1), (5, 0)):
        assert sorted(permuted(np.arange(size), size, key).tolist()) == list(range(size))


def test_permutations_differ_and_look_random():
    size, places = 10_000, np.arange(10_000)
    orders = [permuted(places, size, key) for key in ((0, 0), (0, 1), (1, 0))]
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert (orders[one] == orders[two]).sum() < 12  # one is expected
    for order in orders:
        assert abs(np.corrcoef(places, order)[0, 1]) < 0.05
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
        assert len(np.unique(order[:100] // 100)) > 45  # 63 of 100 are expected


def test_a_permutation_of_very_many_places_is_computed_where_it_is_needed():
    size = 2**50 + 3
    found = permuted(np.arange(100_000), size, (0, 0))
    assert found.min() >= 0
    assert found.max() < size
    assert len(np.unique(found)) == len(found)
    assert abs(found.mean() / size - 0.5) < 0.01


def store(first, windows):
    """A stream without a repeated token, so that a token names its text."""
    return TokenStore(np.arange(first, first + windows * LENGTH + 1, dtype=np.uint32), np.zeros(1, np.int64), 1, 0)


PARTS = (store(0, 50), store(10_000, 20), store(20_000, 5))


def mixture(weights="0.7 0.2 0.1"):
    sources = ",".join(f"{weight}=text:{number}" for number, weight in enumerate(weights.split()))
    return Mixture(PARTS, parse_mixture(f"mixture:{sources}")[1])


def texts_of(rows):
    return rows["tokens"][:, 0] // 10_000


@pytest.mark.parametrize("weights", ["0.7 0.2 0.1", "7 2 1", "1/3 1/3 1/3", "0.98 0.01 0.01"])
def test_every_prefix_has_its_shares(weights):
    text = mixture(weights)
    found = texts_of(shuffled_rows(text, LENGTH, 0, False)(np.arange(3000)))
    shares = [weight / sum(text.weights) for weight in text.weights]
    for number, share in enumerate(shares):
        given = np.cumsum(found == number)
        assert np.abs(given - np.arange(1, 3001) * float(share)).max() <= len(shares)
        assert given[-1] == round(3000 * share)


def test_each_text_gives_its_own_rows_in_their_order():
    rows = shuffled_rows(mixture(), LENGTH, 4, False)(np.arange(400))
    for number, part in enumerate(PARTS):
        inside = texts_of(rows) == number
        own = shuffled_rows(part, LENGTH, 4, False)(np.arange(inside.sum()))
        for name in own:
            np.testing.assert_array_equal(rows[name][inside], own[name])
    counts = Counter(rows["tokens"][texts_of(rows) == 0, 0].tolist())
    assert set(counts.values()) <= {5, 6}  # 280 rows of 50 windows


def test_batches_of_hosts_and_of_a_resumed_run_are_the_same():
    whole = TrainBatches(mixture(), LENGTH, 12, seed=3)
    late = 10**9
    for step in (0, 7, late):
        parts = [TrainBatches(mixture(), LENGTH, 12, 3, host=host, hosts=4) for host in range(4)]
        for name, values in whole[step].items():
            np.testing.assert_array_equal(values, np.concatenate([part[step][name] for part in parts]))
    assert not np.array_equal(whole[0]["tokens"], TrainBatches(mixture(), LENGTH, 12, seed=4)[0]["tokens"])


@pytest.mark.parametrize(
    "source", ["mixture:", "mixture:text:a", "mixture:0=text:a", "mixture:-1=text:a,2=text:b", "mixture:x=text:a"]
)
def test_malformed_mixtures_are_refused(source):
    with pytest.raises(UserError, match=r"WEIGHT=SOURCE"):
        open_corpus(DataConfig(source=source), TokenizerConfig())
    with pytest.raises(UserError, match=r"config\.data\.source=mixture"):
        DataConfig(mixed_source="shards:a", mixed_share=0.5)


def test_a_mixture_of_sources(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"{name * 30} {number}" for number in range(100)))
    source = f"mixture:3=text:{tmp_path}/a.txt,1=text:{tmp_path}/b.txt"
    data = DataConfig(source=source, document_separator="blank_line", cache_dir=str(tmp_path / "cache"))
    corpus = open_corpus(data, TokenizerConfig(kind="bytes"))
    tokens = TrainBatches(corpus.train, 64, 40, 0)[0]["tokens"]
    a, b = corpus.tokenizer.encode("ab")
    assert (tokens == a).any(axis=1).sum() == 30
    assert (tokens == b).any(axis=1).sum() == 10
    assert corpus.train.num_documents == sum(part.num_documents for part in corpus.train.parts)
    assert b not in corpus.validation.tokens
