"""Names of people, places, products and more in messages (WNUT-17, emerging entities): a bidirectional LSTM tagger.

python -m experiments.finetune --config=configs/wnut17_ner.py --workdir=runs/wnut17
python -m experiments.finetune --config=configs/wnut17_ner.py:vectors --config.word_vectors=glove.6B.50d.txt \\
    --workdir=runs/wnut17_vectors

Data: files with one word and its tag per line and blank lines between sentences, below the folder that LM_DATA_DIR
  names:
wnut17/train.conll (3,394 sentences), dev.conll (1,009), test.conll (1,287), from
github.com/leondz/emerging_entities_17.

Measured on one of two shared CPU cores, 2 minutes each, test F1 of entities: vectors (glove.6B.50d) 14.7 ± 0.5% (mean
and standard error of seeds 0, 1, 2: 15.2, 15.1, 13.7; validation 27.0%); random 13.2% (seed 0 only). A logistic
regression on each word, its neighbours and its spelling has 9.7% (95% interval 7.6 to 11.9; experiments.baseline).
"""

from ml_collections import ConfigDict

from lm.configuration import to_config_dict
from lm.data.config import ExamplesConfig, TokenizerConfig
from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.runs.config import FinetuneConfig, OptimizerConfig, TrainingConfig
from lm.tasks.supervised import TaskConfig

# Most test names do not occur in training: use cased subwords, or words that have pretrained vectors.
TOKENIZERS = {
    "random": TokenizerConfig(kind="wordpiece", vocab_size=4096),
    "vectors": TokenizerConfig(kind="words", vocab_size=100_000, lowercase=True, split_punctuation=False),
}
WIDTHS = {"random": 64, "vectors": 50}


def get_config(start: str = "random") -> ConfigDict:
    if start not in WIDTHS:
        raise UserError(f"configs/wnut17_ner.py has the settings {', '.join(WIDTHS)}; got {start!r}")
    config = FinetuneConfig(
        epochs=15,
        buckets=(16, 32, 48, 64, 128),
        model=ModelConfig(
            architecture="lstm",
            layers=1,
            width=WIDTHS[start],
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
        tokenizer=TOKENIZERS[start],
        task=TaskConfig(name="tagging"),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule="cosine", warmup_steps=0, b2=0.999, weight_decay=0.01, ema_decay=0.99
        ),
        training=TrainingConfig(batch_size=32, evaluation_batch_size=128, log_every=50, best_metric="f1"),
    )
    return to_config_dict(config)
