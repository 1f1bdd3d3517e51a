"""A step from shapes alone is the step that a run compiles."""

import dataclasses

import jax
import pytest

from lm.data.config import DataConfig
from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.objectives.objective import ObjectiveConfig
from lm.runs.config import OptimizerConfig, PartitioningConfig, PretrainConfig, TrainingConfig
from lm.training.ahead_of_time import abstract_step, bytes_per_device, partitioned_hlo
from lm.training.compile_only import needed_bytes
from lm.training.hlo import Program

MODEL = ModelConfig(vocab_size=512, layers=3, width=32, heads=4, max_length=64, positions="rotary", scan_layers=True)


def config(model: ModelConfig = MODEL, *, objective: str = "causal", batch_size: int = 16, **axes) -> PretrainConfig:
    return PretrainConfig(
        model=model,
        data=DataConfig(source="text:missing/*.txt"),
        objective=ObjectiveConfig(name=objective),
        optimizer=OptimizerConfig(clip_norm=1.0),
        training=TrainingConfig(steps=10, batch_size=batch_size),
        partitioning=PartitioningConfig(**axes),
    )


def test_products_of_a_decoder_are_the_model_flops_and_recomputation_adds_a_third():
    def ratio(model: ModelConfig) -> float:
        step = abstract_step(config(model), jax.devices()[:1])
        return sum(dot.flops for dot in Program(partitioned_hlo(step.lowered)).dots()) / step.model_flops

    assert ratio(MODEL) == pytest.approx(1, rel=0.01)
    blocks = 1 - 512 * 32 / (512 * 32 + 3 * (12 * 32**2 + 2 * 64 * 32))  # the output matrix is not recomputed
    assert ratio(dataclasses.replace(MODEL, rematerialize="full")) == pytest.approx(1 + blocks / 3, rel=0.05)


def test_each_device_holds_its_share_and_receives_what_it_lacks():
    step = abstract_step(config(fsdp=8), jax.devices())
    whole = abstract_step(config(), jax.devices()[:1])
    assert bytes_per_device(step.state) == pytest.approx(bytes_per_device(whole.state) / 8, rel=0.1)
    assert bytes_per_device(step.batch) == bytes_per_device(whole.batch) / 8
    gathered = [each for each in Program(partitioned_hlo(step.lowered)).collectives() if each.kind == "all-gather"]
    # The three layers' feed-forward matrix, forward and backward.
    assert sum(each.count for each in gathered if each.shape in ((32, 128), (128, 32))) >= 3 * 2 * 2


def test_what_loops_carry_is_held():
    held = {}
    for rematerialize in ("none", "full"):
        model = dataclasses.replace(MODEL, rematerialize=rematerialize)
        step = abstract_step(config(model), jax.devices()[:1])
        held[rematerialize] = Program(partitioned_hlo(step.lowered)).held()
    tokens, layers, width = 16 * 64, 3, 32
    assert held["full"] >= 4 * layers * tokens * width  # the input of each layer
    assert held["none"] >= held["full"] + 4 * layers * tokens * 4 * width  # and what the feed-forward layer makes of it


@pytest.mark.parametrize(
    ("objective", "architecture", "inputs"),
    [("masked_next_sentence", "encoder", None), ("span_corruption", "encoder_decoder", 63)],
)
def test_batches_of_other_objectives_need_no_text(objective, architecture, inputs):
    types = 2 if architecture == "encoder" else 0
    model = dataclasses.replace(MODEL, architecture=architecture, segment_types=types, vocab_size=600)
    step = abstract_step(config(model, objective=objective, fsdp=2, tensor=2), jax.devices())
    assert step.batch["tokens"].shape[0] == 16
    assert ("inputs" in step.batch) == (inputs is not None)
    assert step.batch["targets"].shape[1] < 64  # only what is hidden
    assert step.lowered.as_text()


def test_attention_of_another_machine_leaves_the_parameters():
    model = dataclasses.replace(MODEL, dtype="bfloat16")
    found = [
        abstract_step(config(dataclasses.replace(model, attention=attention)), jax.devices()[:1]).state.params
        for attention in ("explicit", "xla")
    ]
    assert jax.tree.map(lambda leaf: leaf.shape, found[0]) == jax.tree.map(lambda leaf: leaf.shape, found[1])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"partitioning": PartitioningConfig(fsdp=3)}, "data=-1 x fsdp=3 x tensor=1 must equal the 8 devices"),
        ({"training": TrainingConfig(batch_size=12)}, "config.training.batch_size=12"),
        ({"partitioning": PartitioningConfig(strategy="pmap")}, "set config.partitioning.strategy=jit"),
        ({"model": dataclasses.replace(MODEL, vocab_size=None)}, None),
    ],
)
def test_what_cannot_be_planned_says_so(changed, said):
    planned = dataclasses.replace(config(), **changed)
    if said is None:  # characters: only the text has their number
        tokenizer = dataclasses.replace(planned.tokenizer, kind="characters")
        planned, said = dataclasses.replace(planned, tokenizer=tokenizer), "set config.model.vocab_size"
    with pytest.raises(UserError, match=said):
        abstract_step(planned, jax.devices())


def test_memory_that_a_compiler_asks_for_is_read_from_its_message():
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm. Exceeded hbm capacity"
    assert needed_bytes(said) == round(18.5 * 2**30)
    said = "Ran out of memory on HBM, the total memory required for HLO temporaries (298.12G) exceeds available HBM"
    assert needed_bytes(said) == round(298.12 * 2**30)
    assert needed_bytes("RESOURCE_EXHAUSTED: something else") == 0
