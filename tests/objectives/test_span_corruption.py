"""Span corruption: the published lengths, and pairs from which the text comes back."""

from collections import Counter

import numpy as np
import pytest

from lm.data.windows import TrainBatches, ValidationBatches
from lm.errors import UserError
from lm.objectives.corruption import CorruptedBatches, RowRandom
from lm.objectives.objective import ObjectiveConfig
from lm.objectives.registry import special_tokens
from lm.objectives.span_corruption import Lengths, SpanCutter, random_parts, reconstruct, shifted
from tests.objectives.toy_corpus import counting_store, tokenizer_for

END = 99
LENGTHS = Lengths.of_inputs(40, 0.15, 3.0)
SENTINELS = np.arange(LENGTHS.spans, dtype=np.int32)
CUTTER = SpanCutter(LENGTHS, SENTINELS, END)
B = 50
STORE = counting_store([300, 25, 4, 1, 60, 200, 33], END)
WINDOWS = TrainBatches(STORE, LENGTHS.text, B, seed=0, random_offsets=True)[0]
DOCUMENT = {
    token: int(np.searchsorted(STORE.document_starts, place, "right")) for place, token in enumerate(STORE.tokens)
}


def cut(seed=0, windows=WINDOWS):
    return CUTTER(windows, RowRandom((seed,), len(windows["tokens"]), slice(None)))


@pytest.mark.parametrize(
    ("inputs", "density", "span", "text", "targets"),
    [(512, 0.15, 3.0, 568, 114), (114, 0.15, 3.0, 126, 26), (512, 0.5, 3.0, None, None), (3, 0.15, 3.0, 2, 3)],
)
def test_lengths_are_the_published_ones(inputs, density, span, text, targets):
    lengths = Lengths.of_inputs(inputs, density, span)
    assert lengths.inputs <= inputs
    assert lengths.targets <= inputs
    longer = Lengths.of_text(lengths.text + 1, density, span)
    assert longer.inputs > inputs or longer.targets > inputs
    if text is not None:
        assert (lengths.text, lengths.inputs, lengths.targets) == (text, inputs, targets)


def test_a_pair_gives_back_its_text():
    for seed in range(3):
        batch = cut(seed)
        assert batch["inputs"].shape == (B, 40)
        assert batch["targets"].shape == (B, LENGTHS.targets)
        for row in range(B):
            text = reconstruct(batch["inputs"][row], batch["targets"][row], SENTINELS, END)
            np.testing.assert_array_equal(text, WINDOWS["tokens"][row])
    assert reconstruct([5, 0, 6, 1], [0, 7, 8], SENTINELS, END) == [5, 7, 8, 6], "what is left out is left out"


def test_sentinels_are_in_order_on_both_sides_and_noise_on_one():
    batch = cut()
    for row in range(B):
        inputs, targets = batch["inputs"][row], batch["targets"][row]
        for side in (inputs, targets):
            np.testing.assert_array_equal(side[np.isin(side, SENTINELS)], SENTINELS)
            assert side[-1] == END
        kept, noise = (set(side.tolist()) - set(SENTINELS.tolist()) - {END} for side in (inputs, targets))
        assert not kept & noise
        assert (~np.isin(targets, SENTINELS)).sum() == LENGTHS.noise + 1


def test_every_way_to_divide_is_as_likely():
    parts = random_parts(5, 3, RowRandom((0,), 6000, slice(None)))
    counts = Counter(map(tuple, parts.tolist()))
    assert set(counts) == {(1, 1, 3), (1, 3, 1), (3, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1)}
    assert max(abs(count - 1000) for count in counts.values()) < 5 * np.sqrt(6000 / 6 * 5 / 6)
    np.testing.assert_array_equal(random_parts(7, 1, RowRandom((0,), 2, slice(None))), [[7], [7]])


def test_every_token_keeps_its_documents_segment():
    batch = cut()
    text_of_segment = [
        {segment: DOCUMENT[token] for token, segment in zip(*rows, strict=True) if token >= 1000}
        for rows in zip(WINDOWS["tokens"], WINDOWS["segments"], strict=True)
    ]
    for row, documents in enumerate(text_of_segment):
        for side, segments in (("inputs", "input_segments"), ("targets", "segments")):
            for token, segment in zip(batch[side][row], batch[segments][row], strict=True):
                if token >= 1000:
                    assert DOCUMENT[token] == documents[segment]
        # A sentinel goes with what follows it in the targets, on both sides.
        targets, target_segments = batch["targets"][row], batch["segments"][row]
        places = np.flatnonzero(np.isin(targets, SENTINELS))
        np.testing.assert_array_equal(target_segments[places], target_segments[places + 1])
        in_inputs = np.isin(batch["inputs"][row], SENTINELS)
        np.testing.assert_array_equal(batch["input_segments"][row][in_inputs], target_segments[places])
    assert (np.diff(batch["segments"], axis=1) >= 0).all()
    assert (batch["segments"].max(axis=1) > 1).any()


def test_the_decoder_sees_what_came_before_in_its_document():
    targets = np.array([[5, 6, 7, 8, 9]], np.int32)
    segments = np.array([[1, 1, 2, 2, 0]], np.int32)
    np.testing.assert_array_equal(shifted(targets, segments, END), [[END, 5, END, 7, 0]])
    batch = cut()
    assert (batch["tokens"][:, 0] == END).all()
    assert (batch["tokens"] == END).sum() > B, "documents begin within rows"
    starts = np.diff(batch["segments"], axis=1, prepend=0) != 0
    assert (batch["tokens"][starts] == END).all()
    assert (batch["positions"][starts] == 0).all()
    np.testing.assert_array_equal(batch["tokens"][:, 1:][~starts[:, 1:]], batch["targets"][:, :-1][~starts[:, 1:]])


def test_what_is_cut_out_does_not_show():
    batch = cut()
    other = dict(WINDOWS)
    cut_out = [np.isin(text, targets) for text, targets in zip(WINDOWS["tokens"], batch["targets"], strict=True)]
    noise = np.stack(cut_out) & (WINDOWS["tokens"] >= 1000)
    other["tokens"] = np.where(noise, 2000, WINDOWS["tokens"]).astype(np.int32)
    changed = cut(windows=other)
    np.testing.assert_array_equal(changed["inputs"], batch["inputs"])
    assert (changed["targets"] == 2000).sum() > B


def test_padding_counts_nowhere_and_the_text_once():
    windows = ValidationBatches(STORE, LENGTHS.text, 8)
    batches = CorruptedBatches(windows, CUTTER, 8, (0,))
    seen = Counter()
    for index in range(len(batches)):
        batch = batches[index]
        np.testing.assert_array_equal(batch["weights"], batch["segments"] > 0)
        assert not batch["targets"][batch["segments"] == 0].any()
        assert not batch["inputs"][batch["input_segments"] == 0].any()
        for side, segments in (("inputs", "input_segments"), ("targets", "segments")):
            seen.update(batch[side][batch[segments] > 0].tolist())
    assert (batch["weights"].sum(axis=1) == 0).any(), "the last batch has rows of padding"
    assert all(seen[token] == 1 for token in STORE.tokens[:-1].tolist() if token >= 1000)


def test_what_is_missing_is_named():
    objective = ObjectiveConfig(name="span_corruption", sentinels=3)
    assert special_tokens(objective) == ("<extra_id_0>", "<extra_id_1>", "<extra_id_2>")
    tokenizer = tokenizer_for(objective)
    assert SpanCutter.of(objective, tokenizer, 40).lengths.spans <= 3
    with pytest.raises(UserError, match=r"config\.objective\.sentinels=3 are too few for the 28 spans"):
        SpanCutter.of(objective, tokenizer, 512)
    with pytest.raises(UserError, match=r"config\.model\.sequence_length .*must be at least 3"):
        SpanCutter.of(objective, tokenizer, 2)
    with pytest.raises(UserError, match=r"no special token <extra_id_0>"):
        SpanCutter.of(objective, tokenizer_for(ObjectiveConfig()), 40)
