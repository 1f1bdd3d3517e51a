"""Llama 3 8B's shape, sharded over the 64 chips of a TPU v5p-128.

python -m experiments.pretrain --config=configs/llama3_8b.py --workdir=runs/llama3_8b --distributed \
    --config.data.source='jsonl:/data/corpus/*.jsonl'

Planned, not run: parameters and Adam's moments in float32 take 1.5 of 102.8 GB a chip, and a step of 1 M tokens takes
at least 2.6 s: at most 80% MFU with all communication hidden, 77% with none (`experiments.plan`; docs/accelerators.md
says what these bounds assume). On 512 chips, `v5p:8x8x8`: --config.training.batch_size=512. Throughput and losses: not
measured yet.
"""

import dataclasses

from ml_collections import ConfigDict

from lm.configuration import to_config_dict
from lm.data.config import DataConfig, TokenizerConfig
from lm.models.presets import preset
from lm.objectives.objective import ObjectiveConfig
from lm.runs.config import OptimizerConfig, PartitioningConfig, PretrainConfig, TrainingConfig


def get_config() -> ConfigDict:
    config = PretrainConfig(
        model=dataclasses.replace(
            preset("llama3_8b"),
            dtype="bfloat16",
            scan_layers=True,  # compiles one layer instead of 32
            rematerialize="full",
        ),
        data=DataConfig(source="jsonl:corpus/*.jsonl", validation_fraction=0.001),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=128_000),  # the model's table is padded to 128,256
        objective=ObjectiveConfig(z_loss=1e-4),
        optimizer=OptimizerConfig(
            learning_rate=3e-4, schedule="cosine", warmup_steps=2000, b2=0.95, weight_decay=0.1, clip_norm=1.0
        ),
        training=TrainingConfig(
            steps=1_000_000,
            batch_size=128,  # 1 M tokens
            evaluate_every=5000,
            checkpoint_every=1000,
            log_every=10,
            loader_threads=4,
        ),
        partitioning=PartitioningConfig(fsdp=64),
    )
    return to_config_dict(config)
