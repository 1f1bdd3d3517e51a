"""Targets as they are written, and bounds that can be checked by hand."""

import pytest

from lm.errors import UserError
from lm.models.accounting import PEAK_FLOPS
from lm.training.chips import CHIPS, Target, parse_target
from lm.training.hlo import Collective, Dot
from lm.training.roofline import roofline


@pytest.mark.parametrize(
    ("text", "devices", "topology"),
    [
        ("tpu:v5p:4x4x4", 64, "v5p:4x4x4"),
        ("tpu:v5e:4x4", 16, "v5e:4x4"),
        ("cuda:h100:8", 8, None),
    ],
)
def test_targets(text, devices, topology):
    target = parse_target(text)
    assert (target.devices, target.topology, target.chip is None) == (devices, topology, False)
    assert parse_target("cpu:64") == Target("cpu:64", "cpu", 64)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu:8", "must begin with cpu, tpu or cuda"),
        ("", "must begin with cpu, tpu or cuda"),
        ("tpu:v9:4x4x4", "no chip 'v9' among the known tpu chips, v5e, v5p"),
        ("cuda:v5p:8", "no chip 'v5p'"),
        ("tpu:v5p:4x4", "a topology of 3 axes, such as 4x4x4"),
        ("tpu:v5e:4x4x4", "a topology of 2 axes, such as 4x4"),
        ("tpu:v5e:0x4", "a topology of 2 axes"),
        ("tpu:v5e", "a topology of 2 axes"),
        ("cuda:h100:2x4", "a number of devices, such as cuda:8"),
        ("cuda:h100:16", "at most 8 chips of this kind"),
        ("tpu:v5e:32x32", "at most 256 chips"),
        ("cpu:many", "a number of devices, such as cpu:8"),
    ],
)
def test_target_that_does_not_exist(text, said):
    with pytest.raises(UserError, match=said) as error:
        parse_target(text)
    assert f"--target={text}" in str(error.value)


def test_every_chip_has_a_peak():
    assert all(chip.device_kind in PEAK_FLOPS for chips in CHIPS.values() for chip in chips.values())


def bounds(*, fused: bool = False, state_bytes: float = 0.0):
    chip = CHIPS["tpu"]["v5p"]
    product = Dot("bf16", (1000, 2000), contracted=500, count=3, operand_bytes=3_000_000)
    scores = Dot("bf16", (4, 100, 100), contracted=10, count=1, operand_bytes=16_000, batched=True)
    sent = Collective("all-reduce", "f32", (1000,), bytes=4000, count=10, group=4)
    settings = {"model_flops": 4e9, "state_bytes": state_bytes, "fused_attention": fused}
    return chip, roofline(chip, 4, [product, scores], [sent], **settings)


def test_roofline_of_two_products_and_a_sum():
    chip, found = bounds()
    flops = 2 * 1000 * 2000 * 500 * 3 + 2 * 4 * 100 * 100 * 10
    assert found.compute == pytest.approx(flops / 459e12)
    moved = 3 * (3_000_000 + 2 * 1000 * 2000) + 16_000 + 2 * 4 * 100 * 100
    assert found.memory == pytest.approx(moved / chip.memory_bandwidth)
    assert found.network == pytest.approx(10 * 4000 * 2 * 3 / 4 / 600e9)
    assert found.ideal == pytest.approx(4e9 / (4 * 459e12))


def test_fused_attention_keeps_its_scores_and_the_state_moves_twice():
    chip, unfused = bounds()
    _, fused = bounds(fused=True, state_bytes=1e6)
    difference = (2e6 - 16_000 - 2 * 4 * 100 * 100) / chip.memory_bandwidth
    assert fused.memory - unfused.memory == pytest.approx(difference)
    assert fused.compute == unfused.compute


def test_bounds_order_and_name_the_slowest_part():
    _, found = bounds()
    parts = {"compute": found.compute, "memory": found.memory, "network": found.network}
    assert found.overlapped == max(parts.values()) == parts[found.limit]
    assert found.serial == pytest.approx(max(found.compute, found.memory) + found.network)
    assert found.mfu[0] > found.mfu[1]
