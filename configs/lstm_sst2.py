"""Sentiment of sentences (SST-2, whole sentences): a bidirectional LSTM, from random or from pretrained word vectors.

python -m experiments.finetune --config=configs/lstm_sst2.py --workdir=runs/lstm_sst2
python -m experiments.finetune --config=configs/lstm_sst2.py:vectors --config.word_vectors=glove.6B.50d.txt \\
    --workdir=runs/lstm_sst2_vectors

Data as in configs/sst2.py. Word vectors: any text file of GloVe or word2vec with 50 numbers per word, such as
glove.6B.50d (nlp.stanford.edu/projects/glove); another width with --config.model.width=300.

Measured on one of two shared CPU cores, 3 minutes each, test accuracy (mean and standard error of seeds 0, 1, 2):
  random   80.8 ± 0.6% (81.7, 81.2, 79.6)
  vectors  83.0 ± 0.2% (83.4, 82.7, 82.9) with glove.6B.50d
A logistic regression on bags of words has 81.0% (experiments.baseline), the majority 50.1%. flax's own example states
85.2% with ten times the training rows.
"""

from ml_collections import ConfigDict

from lm.configuration import to_config_dict
from lm.data.config import ExamplesConfig, TokenizerConfig
from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.runs.config import FinetuneConfig, OptimizerConfig, TrainingConfig
from lm.tasks.supervised import TaskConfig

# By initialization of the token embedding: epochs; the model's size and dropout; the learning rate.
SETTINGS = {
    "random": (
        7,
        {"width": 128, "recurrent_width": 128, "dropout": 0.3},
        {"learning_rate": 1e-3, "schedule": "constant"},
    ),
    "vectors": (
        8,
        {"width": 50, "recurrent_width": 256, "dropout": 0.4},
        {"learning_rate": 2e-3, "schedule": "cosine"},
    ),
}


def get_config(start: str = "random") -> ConfigDict:
    if start not in SETTINGS:
        raise UserError(f"configs/lstm_sst2.py has the settings {', '.join(SETTINGS)}; got {start!r}")
    epochs, model, optimizer = SETTINGS[start]
    config = FinetuneConfig(
        epochs=epochs,
        buckets=(16, 24, 32, 64),
        model=ModelConfig(architecture="lstm", layers=1, max_length=128, initializer_range=0.1, **model),
        data=ExamplesConfig(
            train="jsonl:$LM_DATA_DIR/sst2/train.jsonl",
            validation="jsonl:$LM_DATA_DIR/sst2/validation.jsonl",
            test="jsonl:$LM_DATA_DIR/sst2/test.jsonl",
        ),
        # The sentences are already tokenized, with spaces between words.
        tokenizer=TokenizerConfig(kind="words", vocab_size=100_000, lowercase=True, split_punctuation=False),
        # Mixup, because a set this small is easily memorized.
        task=TaskConfig(name="classification", mixup=0.5),
        optimizer=OptimizerConfig(warmup_steps=0, b2=0.999, weight_decay=0.01, ema_decay=0.99, **optimizer),
        training=TrainingConfig(batch_size=32, evaluation_batch_size=128, log_every=50, best_metric="accuracy"),
    )
    return to_config_dict(config)
