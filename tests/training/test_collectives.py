"""What a training step of the larger configs sends between eight devices: the gate holds it.

A change of model, loss or sharding rules that makes the compiler send something else shows here, not on a bill. If the
change is meant, so are the new numbers.
"""

from collections import Counter

import jax
import pytest

from lm.config_files import load_config
from lm.runs.config import PretrainConfig
from lm.training.ahead_of_time import AbstractStep, abstract_step, partitioned_hlo
from lm.training.hlo import Program

# Megabytes of arrays that one step gathers, reduces or moves, on each device.
GOLDEN: dict[tuple[str, str], dict[str, int]] = {
    ("llama_1b", "fsdp=8"): {"all-gather": 70397, "all-reduce": 4724, "reduce-scatter": 35199},
    ("llama_1b", "fsdp=2 tensor=4"): {"all-gather": 17599, "all-reduce": 491218, "reduce-scatter": 8800},
    ("llama3_8b", "fsdp=8"): {"all-gather": 32120, "all-reduce": 2365, "reduce-scatter": 16060},
    ("gpt2_124m", "fsdp=1"): {"all-reduce": 7232, "reduce-scatter": 2318},
    ("bert_base", "fsdp=2 tensor=2"): {
        "all-gather": 872,
        "all-reduce": 2996,
        "collective-permute": 10,
        "reduce-scatter": 528,
    },
    ("t5_small", "fsdp=8"): {"all-gather": 242, "all-reduce": 193, "reduce-scatter": 154},
}


def planned(name: str, axes: str) -> AbstractStep:
    overrides = {f"partitioning.{axis}": size for axis, size in (each.split("=") for each in axes.split())}
    config = load_config(name, (PretrainConfig,), overrides | {"model.scan_layers": "True", "model.attention": "xla"})
    return abstract_step(config, jax.devices())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "axes"), GOLDEN, ids=" ".join)
def test_a_step_sends_what_it_sent_before(name, axes):
    step = planned(name, axes)
    sent = Counter()
    for each in Program(partitioned_hlo(step.lowered)).collectives():
        sent["reduce-scatter" if each.sliced else each.kind] += each.bytes * each.count
        vocabulary = step.config.model.size_of_vocabulary
        logits = vocabulary, vocabulary // step.mesh.shape["tensor"]
        assert len(each.shape) < 2 or each.shape[-1] not in logits, f"logits are sent: {each}"
    assert {kind: round(size / 1e6) for kind, size in sent.items() if size > 1e6} == GOLDEN[name, axes]
