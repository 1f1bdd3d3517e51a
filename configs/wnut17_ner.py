"""Names of people, places, products and more in messages (WNUT-17, emerging entities): a bidirectional LSTM tagger.

python -m experiments.finetune --config=configs/wnut17_ner.py --workdir=runs/wnut17

Data: files of one word and its tag a line, a blank line between sentences, below the folder that LM_DATA_DIR names:
wnut17/train.conll (3,394 sentences), dev.conll (1,009), test.conll (1,287), from
github.com/leondz/emerging_entities_17.

Not measured yet.
"""

from ml_collections import ConfigDict

from lm.configuration import to_config_dict
from lm.data.config import ExamplesConfig, TokenizerConfig
from lm.modules.config import ModelConfig
from lm.tasks.supervised import TaskConfig
from lm.training.config import FinetuneConfig, TrainingConfig
from lm.training.optimizers import OptimizerConfig


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
        data=ExamplesConfig(
            train="conll:$LM_DATA_DIR/wnut17/train.conll",
            validation="conll:$LM_DATA_DIR/wnut17/dev.conll",
            test="conll:$LM_DATA_DIR/wnut17/test.conll",
        ),
        # Pieces of words, with their case: most names of the test set are in no training sentence.
        tokenizer=TokenizerConfig(kind="wordpiece", vocab_size=4096),
        task=TaskConfig(name="tagging"),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule="cosine", warmup_steps=0, b2=0.999, weight_decay=0.01, ema_decay=0.99
        ),
        training=TrainingConfig(batch_size=32, evaluation_batch_size=128, log_every=50, best_metric="f1"),
    )
    return to_config_dict(config)
