"""Does one sentence follow from another? (SICK: entailment, neutral, contradiction): a bidirectional LSTM.

python -m experiments.finetune --config=configs/sick_nli.py --workdir=runs/sick
python -m experiments.finetune --config=configs/sick_nli.py:vectors --config.word_vectors=glove.6B.50d.txt \\
    --workdir=runs/sick_vectors

Data: jsonl files with `premise`, `hypothesis` and `label`, below the folder that LM_DATA_DIR names: sick/train.jsonl
(4,500 rows), trial.jsonl (500), test.jsonl (4,927).

Measured on one of two shared CPU cores, 3 minutes each: vectors (glove.6B.50d), test accuracy 74.8 ± 0.3% (mean and
standard error of seeds 0, 1, 2: 74.9, 75.3, 74.3); random: not measured yet. A logistic regression on bags of words has
62.3% (95% interval 60.9 to 63.6; experiments.baseline), the majority 56.7%.
"""

from ml_collections import ConfigDict

from lm.configuration import to_config_dict
from lm.data.config import ExamplesConfig, TokenizerConfig
from lm.errors import UserError
from lm.modules.config import ModelConfig
from lm.runs.config import FinetuneConfig, OptimizerConfig, TrainingConfig
from lm.tasks.supervised import TaskConfig

WIDTHS = {"random": 128, "vectors": 50}


def get_config(start: str = "random") -> ConfigDict:
    if start not in WIDTHS:
        raise UserError(f"configs/sick_nli.py has the settings {', '.join(WIDTHS)}; got {start!r}")
    config = FinetuneConfig(
        epochs=12,
        buckets=(16, 24, 32, 64),
        model=ModelConfig(
            architecture="lstm",
            layers=1,
            width=WIDTHS[start],
            recurrent_width=128,
            max_length=96,
            dropout=0.3,
            initializer_range=0.1,
        ),
        data=ExamplesConfig(
            train="jsonl:$LM_DATA_DIR/sick/train.jsonl",
            validation="jsonl:$LM_DATA_DIR/sick/trial.jsonl",
            test="jsonl:$LM_DATA_DIR/sick/test.jsonl",
            columns=("text=premise", "pair=hypothesis"),
        ),
        tokenizer=TokenizerConfig(kind="words", vocab_size=100_000, lowercase=True),
        task=TaskConfig(name="classification", pair=True),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule="cosine", warmup_steps=0, b2=0.999, weight_decay=0.01, ema_decay=0.99
        ),
        training=TrainingConfig(batch_size=32, evaluation_batch_size=128, log_every=50, best_metric="accuracy"),
    )
    return to_config_dict(config)
