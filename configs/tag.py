"""Tagging of words in your own texts, such as names: a bidirectional LSTM over subwords.

python -m experiments.finetune --config=configs/tag.py --config.data.train=conll:train.conll --workdir=runs/tags

A file has one word and its tag per line and blank lines between sentences, or is jsonl with `words` and `tags`. A tenth
of the sentences is held out for validation, unless --config.data.validation names a file. The recipe is that of
configs/wnut17_ner.py; for a pretrained encoder add --config.init_from=DIR.

Not measured yet.
"""

from ml_collections import ConfigDict

from lm.configuration import to_config_dict
from lm.data.config import ExamplesConfig, TokenizerConfig
from lm.modules.config import ModelConfig
from lm.runs.config import FinetuneConfig, OptimizerConfig, TrainingConfig
from lm.tasks.supervised import TaskConfig


def get_config() -> ConfigDict:
    config = FinetuneConfig(
        epochs=15,
        buckets=(16, 32, 48, 64, 128),
        model=ModelConfig(
            architecture="lstm",
            layers=1,
            width=64,
            recurrent_width=96,
            max_length=512,
            dropout=0.5,
            initializer_range=0.1,
        ),
        data=ExamplesConfig(),
        tokenizer=TokenizerConfig(kind="wordpiece", vocab_size=4096),  # names are often unknown as whole words
        task=TaskConfig(name="tagging", truncate=True),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule="cosine", warmup_steps=0, b2=0.999, weight_decay=0.01, ema_decay=0.99
        ),
        training=TrainingConfig(batch_size=32, evaluation_batch_size=128, log_every=50, best_metric="f1"),
    )
    return to_config_dict(config)
