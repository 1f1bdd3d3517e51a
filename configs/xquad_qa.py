"""Answers as spans of a paragraph (XQuAD, English): an encoder, pretrained or not.

python -m experiments.finetune --config=configs/xquad_qa.py --config.init_from=runs/bert --workdir=runs/xquad

Data: xquad.en.json in SQuAD's format (1,190 questions), below the folder that LM_DATA_DIR names: xquad/xquad.en.json,
from github.com/google-deepmind/xquad. A fifth of them is held out, with their paragraphs. This is only enough to show
that the pieces work together; for more, train on SQuAD (--config.data.train=squad:train-v1.1.json), from a pretrained
encoder.

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
        epochs=5,
        buckets=(128,),
        model=ModelConfig(architecture="encoder", layers=4, width=128, heads=4, max_length=128, dropout=0.1),
        data=ExamplesConfig(train="squad:$LM_DATA_DIR/xquad/xquad.en.json", validation_fraction=0.2),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=4096),
        task=TaskConfig(name="question_answering", stride=32),
        optimizer=OptimizerConfig(learning_rate=5e-4, schedule="linear", warmup_steps=50, final_learning_rate=0.0),
        training=TrainingConfig(batch_size=32, evaluation_batch_size=64, log_every=20, best_metric="f1"),
    )
    return to_config_dict(config)
