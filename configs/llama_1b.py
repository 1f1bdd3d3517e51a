"""A Llama-like model of 1.1 billion parameters (TinyLlama's shape), sharded over all devices.

python -m experiments.pretrain --config=configs/llama_1b.py --workdir=runs/llama \
    --config.data.source='jsonl:/data/corpus/*.jsonl' --config.partitioning.fsdp=8

Parameters, moments and gradients in float32 take 18 GB over the axis `fsdp`. Throughput: not measured yet.
"""

import dataclasses

from ml_collections import ConfigDict

from lm.configuration import to_config_dict
from lm.data.config import DataConfig, TokenizerConfig
from lm.models.presets import preset
from lm.objectives.objective import ObjectiveConfig
from lm.runs.config import OptimizerConfig, PretrainConfig, TrainingConfig


def get_config() -> ConfigDict:
    config = PretrainConfig(
        model=dataclasses.replace(
            preset("tinyllama_1.1b"),
            dtype="bfloat16",
            scan_layers=True,  # compiles 22 times less
            rematerialize="dots",
        ),
        data=DataConfig(source="jsonl:corpus/*.jsonl", validation_fraction=0.001),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=32_000),
        # A device holds the logits of so many tokens at a time: 0.5 GB in float32.
        objective=ObjectiveConfig(loss_chunk=4096, z_loss=1e-4),
        optimizer=OptimizerConfig(
            learning_rate=4e-4, schedule="cosine", warmup_steps=2000, b2=0.95, weight_decay=0.1, clip_norm=1.0
        ),
        training=TrainingConfig(
            steps=100_000,
            batch_size=1024,  # 2 M tokens
            micro_batches=16,
            evaluation_batch_size=64,
            evaluate_every=1000,
            checkpoint_every=1000,
            log_every=10,
            loader_threads=4,
        ),
    )
    return to_config_dict(config)
