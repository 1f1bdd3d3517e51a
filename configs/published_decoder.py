"""Fine-tuning a published decoder (SmolLM2, Qwen, Llama, ...) to complete prompts: the kind of a question, in words.

python -m experiments.finetune --config=configs/published_decoder.py --config.init_from=hf:DIRECTORY \\
    --workdir=runs/smollm2_trec
python -m experiments.calibrate --config=configs/calibrate.py --workdir=runs/smollm2_trec

Data: as configs/trec.py, with `text` as the prompt and `label` as its completion; 500 of the rows are for training.

Measured with SmolLM2-135M-Instruct on two shared CPU cores, 14 minutes (mean and standard error of seeds 0, 1, 2):
86.3 ± 1.9% of the test questions completed exactly, ECE 4.0 ± 0.5% (noise floor 3.7), after a temperature
5.2 ± 0.9% (3.8).
"""

from ml_collections import ConfigDict

from lm.configuration import to_config_dict
from lm.data.config import ExamplesConfig
from lm.modules.config import ModelConfig
from lm.runs.config import FinetuneConfig, OptimizerConfig, TrainingConfig
from lm.tasks.supervised import TaskConfig


def get_config() -> ConfigDict:
    config = FinetuneConfig(
        epochs=2,
        buckets=(16, 24, 32, 48, 64),
        # Everything else is the published model's.
        model=ModelConfig(sequence_length=64),
        data=ExamplesConfig(
            train="jsonl:$LM_DATA_DIR/trec/train.jsonl",
            test="jsonl:$LM_DATA_DIR/trec/test.jsonl",
            columns=("prompt=text", "completion=label"),
            train_rows=500,
        ),
        task=TaskConfig(name="completion", max_target_length=8, truncate=True),
        optimizer=OptimizerConfig(
            learning_rate=5e-5, schedule="linear", warmup_steps=5, final_learning_rate=0.0, b2=0.999, weight_decay=0.01
        ),
        training=TrainingConfig(batch_size=16, evaluation_batch_size=32, log_every=5, best_metric="exact_match"),
    )
    return to_config_dict(config)
