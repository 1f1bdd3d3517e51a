"""Sentiment of sentences (SST-2, whole sentences): an encoder, pretrained or not.

python -m experiments.finetune --config=configs/sst2.py --config.init_from=runs/bert --workdir=runs/sst2

Data: jsonl files with `text` and `label`, below the folder that LM_DATA_DIR names: sst2/train.jsonl (6,920 rows),
validation.jsonl (872), test.jsonl (1,821). The catalogue set has them too: --config.data.train=tfds:glue/sst2:train and
so on, with --config.data.columns="('text=sentence',)"; its test labels are hidden.

Measured (seed 0, one of two shared CPU cores, 5 minutes, --config.epochs=3): from the encoder of Python code that
configs/bert_quickstart.py makes, test accuracy 71.2%; from random weights of the same shape 71.6%. Pretraining on code
does not help with film reviews; configs/ag_news.py shows the effect of pretraining on similar text.
"""

from ml_collections import ConfigDict

from lm.configuration import to_config_dict
from lm.data.config import ExamplesConfig, TokenizerConfig
from lm.modules.config import ModelConfig
from lm.runs.config import FinetuneConfig, OptimizerConfig, TrainingConfig
from lm.tasks.supervised import TaskConfig


def get_config() -> ConfigDict:
    config = FinetuneConfig(
        epochs=5,
        buckets=(16, 32, 48, 64),
        # Used without `init_from`; otherwise the pretrained model's shape is used.
        model=ModelConfig(architecture="encoder", layers=4, width=128, heads=4, max_length=128, dropout=0.1),
        data=ExamplesConfig(
            train="jsonl:$LM_DATA_DIR/sst2/train.jsonl",
            validation="jsonl:$LM_DATA_DIR/sst2/validation.jsonl",
            test="jsonl:$LM_DATA_DIR/sst2/test.jsonl",
        ),
        tokenizer=TokenizerConfig(kind="wordpiece", vocab_size=8192, lowercase=True),
        task=TaskConfig(name="classification", truncate=True),
        optimizer=OptimizerConfig(learning_rate=5e-4, schedule="linear", warmup_steps=50, final_learning_rate=0.0),
        training=TrainingConfig(batch_size=32, evaluation_batch_size=128, log_every=50, best_metric="accuracy"),
    )
    return to_config_dict(config)
