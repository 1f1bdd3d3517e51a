"""Llama 3 8B's shape, sharded over a TPU v5p-128 (64 chips).

python -m experiments.pretrain --config=configs/llama3_8b.py --workdir=runs/llama3_8b --distributed \
    --config.data.source='jsonl:/data/corpus/*.jsonl'
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
            attention="xla",
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
            evaluation_batch_size=64,
            evaluate_every=5000,
            checkpoint_every=1000,
            log_every=10,
            loader_threads=4,
        ),
        partitioning=PartitioningConfig(fsdp=64),
    )
    return to_config_dict(config)
