"""BERT base on English Wikipedia, with the recipe of Devlin et al. 2019 (section 3.1 and appendix A.2).

python -m experiments.pretrain --config=configs/bert_base.py --workdir=runs/bert_base
The catalogue set is prepared on first use, which takes TensorFlow: pip install -e '.[tfds]'.
Any other text works too: --config.data.source='text:/data/corpus/**/*.txt'

RoBERTa's objective (Liu et al. 2019) is --config.objective.name=masked; SpanBERT's masking (Joshi et al. 2020) is
--config.objective.masking=span; ALBERT's pairs (Lan et al. 2020) are --config.objective.name=masked_sentence_order.

One H100, bf16: not measured yet.
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
            preset("bert_base"),
            vocab_size=30_592,  # 30,522 padded to a multiple of 128
            dtype="bfloat16",
            attention_dropout=0.0,  # the paper's is 0.1, which fused attention cannot do
        ),
        data=DataConfig(source="tfds:wikipedia/20230601.en", train_split="train[:99%]", validation_split="train[99%:]"),
        tokenizer=TokenizerConfig(kind="wordpiece", vocab_size=30_519),  # and [CLS], [SEP], [MASK]
        objective=ObjectiveConfig(name="masked_next_sentence"),
        optimizer=OptimizerConfig(
            learning_rate=1e-4,
            schedule="linear",
            warmup_steps=10_000,
            final_learning_rate=0.0,
            b2=0.999,
            epsilon=1e-6,
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        training=TrainingConfig(
            steps=1_000_000,
            batch_size=256,
            micro_batches=4,
            evaluation_batch_size=64,
            evaluate_every=10_000,
            checkpoint_every=2000,
            log_every=50,
            loader_threads=2,
        ),
    )
    return to_config_dict(config)
