"""GPT-2 124M on OpenWebText, with nanoGPT's recipe.

python -m experiments.pretrain --config=configs/gpt2_124m.py --workdir=runs/gpt2
The catalogue set is prepared on first use, which takes TensorFlow: pip install -e '.[tfds]'.
Any other text works too: --config.data.source='text:/data/corpus/**/*.txt'

One H100, bf16: not measured yet. nanoGPT states a validation loss of 2.85 after 600,000 steps on 8 A100.
"""

import dataclasses

from ml_collections import ConfigDict

from lm.configuration import to_config_dict
from lm.data.config import DataConfig, TokenizerConfig
from lm.models.presets import preset
from lm.runs.config import OptimizerConfig, PretrainConfig, TrainingConfig


def get_config() -> ConfigDict:
    config = PretrainConfig(
        model=dataclasses.replace(
            preset("gpt2_124m"),
            vocab_size=50_304,  # 50,257 padded to a multiple of 128
            bias=False,
            dropout=0.0,  # nanoGPT's choice for pretraining: a corpus of this size does not overfit
            dtype="bfloat16",
        ),
        data=DataConfig(source="tfds:openwebtext", train_split="train[:99%]", validation_split="train[99%:]"),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=50_257),
        optimizer=OptimizerConfig(
            learning_rate=6e-4, schedule="cosine", warmup_steps=2000, b2=0.95, weight_decay=0.1, clip_norm=1.0
        ),
        training=TrainingConfig(
            steps=600_000,
            batch_size=480,  # 0.49 M tokens
            micro_batches=15,
            evaluation_batch_size=32,
            evaluate_every=2000,
            checkpoint_every=1000,
            log_every=10,
            loader_threads=2,
        ),
    )
    return to_config_dict(config)
