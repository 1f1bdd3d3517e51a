"""Summaries of dialogues (DialogSum, Chen et al. 2021): an encoder-decoder, here from scratch.

python -m experiments.finetune --config=configs/dialogsum.py --workdir=runs/dialogsum

Data: a jsonl file with `dialogue` and `summary`, below the folder that LM_DATA_DIR names: dialogsum/dev.jsonl (500
rows), of which a tenth is held out. This is only enough to show that the pieces work together; usable summaries need a
pretrained model (--config.init_from=DIR).

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
        epochs=10,
        buckets=(64, 128, 256, 512),
        # Used without `init_from`; otherwise the pretrained model's shape is used.
        model=ModelConfig(
            architecture="encoder_decoder",
            layers=3,
            width=128,
            heads=4,
            max_length=512,
            positions="relative",
            dropout=0.1,
        ),
        data=ExamplesConfig(
            train="jsonl:$LM_DATA_DIR/dialogsum/dev.jsonl", columns=("source=dialogue", "target=summary")
        ),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=4096),
        task=TaskConfig(
            name="sequence_to_sequence",
            prefix="summarize: ",
            truncate=True,  # a few dialogues are longer than 512 tokens
            label_smoothing=0.1,
            max_target_length=80,
            beams=4,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="linear", warmup_steps=50, final_learning_rate=0.0),
        training=TrainingConfig(batch_size=16, log_every=10, best_metric="rougeL"),
    )
    return to_config_dict(config)
