"""Translation, or any text to text, learned from your own pairs: a small encoder-decoder from scratch.

python -m experiments.finetune --config=configs/translate.py --config.data.train=csv:pairs.csv --workdir=runs/pairs

A row has `source` and `target`; other names of columns: --config.data.columns="('source=de','target=en')". A tenth of
the pairs is held out for validation, unless --config.data.validation names a file. The recipe is that of
configs/multi30k_translation.py, which reaches BLEU 38 from 29,000 pairs of short sentences; it takes thousands of pairs
to learn anything. Texts beyond 128 tokens are cut, and their number is printed.

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
        epochs=4,
        buckets=(16, 32, 64, 128),
        model=ModelConfig(
            architecture="encoder_decoder",
            layers=3,
            width=128,
            heads=4,
            max_length=128,
            positions="rotary",
            dropout=0.1,
        ),
        data=ExamplesConfig(),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=6000),
        task=TaskConfig(name="sequence_to_sequence", label_smoothing=0.1, max_target_length=96, beams=4, truncate=True),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=2e-2, schedule="linear", warmup_steps=100, final_learning_rate=0.01, b1=0.95
        ),
        training=TrainingConfig(batch_size=64, evaluation_batch_size=64, log_every=50, best_metric="bleu"),
    )
    return to_config_dict(config)
