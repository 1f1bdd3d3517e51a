"""Windows and batches: every target once, and a batch is a function of its step."""

from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest

from lm.data.store import TokenStore
from lm.data.windows import MixedBatches, TrainBatches, ValidationBatches, prefetch, window
from lm.errors import UserError

END = 999


def make_store(lengths, end_of_text=True):
    """Documents of distinct ids, from 1000 on, so that a token tells its place in the corpus."""
    numbers = iter(range(1000, 60_000))
    prefix = [END] if end_of_text else []
    stream, starts = [], []
    for length in lengths:
        starts.append(len(stream))
        stream += prefix + list(islice(numbers, length))
    tokens = np.array(stream + prefix, np.uint16)
    return TokenStore(tokens, np.array(starts, np.int64), sum(lengths), END if end_of_text else None)


MANY = [5, 1, 1, 13, 40, 2, 7, 1, 30]


@pytest.fixture(params=[True, False], ids=["end_of_text", "no_end_of_text"])
def store(request):
    return make_store(MANY, request.param)


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def naive_window(store, start, length):
    """The definition, one token at a time."""
    rows = {name: [] for name in ("tokens", "targets", "weights", "positions", "segments")}
    starts = set(store.document_starts.tolist())
    position, segment = 0, 1
    for i in range(start, start + length):
        if i + 1 >= store.num_tokens:
            values = (0, 0, 0, 0, 0)
        else:
            if i in starts and i > start:
                position, segment = 0, segment + 1
            weight = 1 if store.has_end_of_text or i + 1 not in starts else 0
            values = (store.tokens[i], store.tokens[i + 1], weight, position, segment)
            position += 1
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
    return {name: np.array(values) for name, values in rows.items()}


@pytest.mark.parametrize("length", [1, 7, 16, 300])
def test_window_equals_its_definition(store, length):
    for start in range(store.num_tokens):
        assert_equal(window(store, start, length), naive_window(store, start, length))


def test_window_types(store):
    types = {name: values.dtype.name for name, values in window(store, 0, 4).items()}
    assert types.pop("weights") == "float32"
    assert set(types.values()) == {"int32"}


@pytest.mark.parametrize(("length", "batch_size"), [(1, 1), (7, 4), (16, 3), (300, 2)])
@pytest.mark.parametrize("hosts", [1, 2])
def test_validation_has_every_target_once(store, length, batch_size, hosts):
    batch_size *= hosts
    counted = Counter()
    for host in range(hosts):
        batches = ValidationBatches(store, length, batch_size, host, hosts)
        assert len(batches) == len(ValidationBatches(store, length, batch_size))
        for batch in batches:
            assert batch["tokens"].shape == (batch_size // hosts, length)
            inside = batch["segments"] > 0
            assert not batch["weights"][~inside].any()
            counted.update(zip(batch["tokens"][inside].tolist(), batch["targets"][inside].tolist(), strict=True))
    stream = store.tokens.tolist()
    assert counted == Counter(pairwise(stream))


def test_weights_leave_out_only_what_cannot_be_predicted(store):
    weight = sum(batch["weights"].sum() for batch in ValidationBatches(store, 7, 4))
    unpredictable = 0 if store.has_end_of_text else len(MANY) - 1
    assert weight == store.num_tokens - 1 - unpredictable


def test_validation_index_is_checked(store):
    batches = ValidationBatches(store, 7, 4)
    with pytest.raises(IndexError):
        batches[len(batches)]


def starts_of(store, batch):
    """Stream positions of the windows, from the distinct targets."""
    place = {int(token): i for i, token in enumerate(store.tokens)}
    # The last column that isn't END tells where the row is.
    found = []
    for row in batch["tokens"]:
        column = max(np.flatnonzero(row != END))
        found.append(place[int(row[column])] - int(column))
    return found


def test_an_epoch_has_each_window_once_and_epochs_differ():
    store = make_store([200])
    batches = TrainBatches(store, 8, 4, seed=3)  # 25 windows: batches straddle epochs
    assert (store.num_tokens - 1) // 8 == 25
    order = [start for step in range(75) for start in starts_of(store, batches[step])]
    epochs = [order[i : i + 25] for i in range(0, 300, 25)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(0, 200, 8))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_a_corpus_smaller_than_a_batch_repeats_within_it():
    batch = TrainBatches(make_store([20]), 8, 7, seed=0)[1]
    assert batch["tokens"].shape == (7, 8)
    assert len(np.unique(batch["tokens"], axis=0)) == 2


@pytest.mark.parametrize("random_offsets", [False, True])
def test_a_batch_is_a_function_of_seed_and_step(store, random_offsets):
    def make(seed=5):
        return TrainBatches(store, 8, 4, seed, random_offsets)

    in_order = make()
    batches = [in_order[step] for step in range(30)]
    for step in (29, 3, 17, 0):
        assert_equal(make()[step], batches[step])
    assert any((make(6)[step]["tokens"] != batches[step]["tokens"]).any() for step in range(3))


@pytest.mark.parametrize("random_offsets", [False, True])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_prefetch_from_a_step_gives_the_tail(store, random_offsets, threads):
    batches = TrainBatches(store, 8, 4, 0, random_offsets)
    for step, batch in zip(range(11, 40), prefetch(batches, 11, threads), strict=False):
        assert_equal(batch, batches[step])


def test_prefetch_ends_where_the_batches_end(store):
    batches = ValidationBatches(store, 7, 4)
    for start in (0, 2, len(batches)):
        prefetched = list(prefetch(batches, start))
        assert len(prefetched) == len(batches) - start
        for one, two in zip(prefetched, list(batches)[start:], strict=True):
            assert_equal(one, two)


@pytest.mark.parametrize("random_offsets", [False, True])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_batch_of_one(store, random_offsets, hosts):
    shared = [TrainBatches(store, 8, 8, 1, random_offsets, host, hosts) for host in range(hosts)]
    for step in (0, 1, 20):
        parts = [batches[step] for batches in shared]
        union = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert_equal(union, TrainBatches(store, 8, 8, 1, random_offsets)[step])


def test_random_offsets_reach_the_end_of_the_stream_and_never_leave_it():
    store = make_store([201])  # 25 windows of 8, and 2 more targets
    plain, shifted = (TrainBatches(store, 8, 25, 0, random_offsets) for random_offsets in (False, True))
    reached = {False: Counter(), True: Counter()}
    for epoch in range(60):
        for batches in (plain, shifted):
            reached[batches is shifted].update(batches[epoch]["targets"].ravel().tolist())
        assert shifted[epoch]["segments"].all()
    assert reached[True].keys() == set(store.tokens.tolist())
    assert len(reached[False]) == 200
    assert starts_of(store, shifted[0]) != starts_of(store, shifted[1])


REAL, OWN = make_store([500]), make_store([9] * 30)


def mixed(share=0.25, batch_size=8, seed=3, **hosts):
    parts = (TrainBatches(store, 8, batch_size, seed, **hosts) for store in (REAL, OWN))
    return MixedBatches(*parts, share)


@pytest.mark.parametrize(("share", "rows"), [(0.25, 2), (0.5, 4), (0.3, 2), (0.9, 7)])
def test_a_share_of_the_rows_is_of_the_other_text(share, rows):
    real, own = (TrainBatches(store, 8, 8, 3) for store in (REAL, OWN))
    for step in (0, 5, 1000):
        batch = mixed(share)[step]
        assert batch.keys() == real[step].keys()
        for name, values in batch.items():
            assert values.dtype == real[step][name].dtype
            np.testing.assert_array_equal(values[:rows], own[step][name][:rows])
            np.testing.assert_array_equal(values[rows:], real[step][name][rows:])


@pytest.mark.parametrize(("share", "rows"), [(0.01, 0), (0.95, 8)])
def test_a_share_that_leaves_out_a_text_is_refused(share, rows):
    with pytest.raises(UserError, match=f"config.data.mixed_share={share} of 8 windows is {rows} when rounded"):
        mixed(share)


def test_a_mixed_batch_is_a_function_of_its_step():
    in_order = mixed()
    batches = [in_order[step] for step in range(40)]
    for step in (39, 0, 17):
        assert_equal(mixed()[step], batches[step])
    for batch, known in zip(prefetch(mixed(), 11, threads=2), batches[11:], strict=False):
        assert_equal(batch, known)
    assert (mixed(seed=4)[0]["tokens"] != batches[0]["tokens"]).any()
    assert len(mixed()) > 10**9


def test_every_window_of_the_real_text_still_comes():
    """The rows that the other text takes are not always those of the same windows."""
    seen = np.unique(np.concatenate([batch["tokens"].ravel() for batch in islice(mixed(0.5), 100)]))
    assert np.isin(REAL.tokens[:496], seen).all()


def test_each_host_mixes_the_same_share():
    for host in range(2):
        part, own = mixed(host=host, hosts=2)[7], TrainBatches(OWN, 8, 8, 3, host=host, hosts=2)[7]
        assert part["tokens"].shape == (4, 8)
        np.testing.assert_array_equal(part["tokens"][:1], own["tokens"][:1])
        assert (part["segments"][1:] == 1).all(), "the real text is one document"


def test_errors_name_the_numbers_and_the_fields():
    store = make_store([30])
    with pytest.raises(UserError, match=r"32 tokens, .*\(33\).* config.model.sequence_length .* config.data.source"):
        TrainBatches(store, 32, 1, 0)
    TrainBatches(store, 31, 1, 0)[0]
    for make in (lambda: TrainBatches(store, 8, 6, 0, hosts=4), lambda: ValidationBatches(store, 8, 6, hosts=4)):
        with pytest.raises(
            UserError, match=r"config.training.batch_size=6 must be divisible by the number of hosts, 4"
        ):
            make()
    with pytest.raises(UserError, match="validation split has fewer than 2 tokens"):
        ValidationBatches(make_store([1], end_of_text=False), 8, 1)
