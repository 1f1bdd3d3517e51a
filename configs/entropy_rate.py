"""Entropy-rate drift of small language models: does what they write grow more random than what they learned from?

python -m experiments.entropy_rate --config=configs/entropy_rate.py --workdir=runs/entropy_rate

Data: the catalogue set tiny_shakespeare below TFDS_DATA_DIR, sotu/sotu.txt.gz below LM_DATA_DIR, Python's own library.
docs/entropy_rate.md says what the columns mean.

Measured on a busy CPU core (about 50 CPU minutes for these five), seed 0: entropy rate minus loss (gap), and the same
after a temperature; exponent of growth over 512 tokens relative to real text; nats a token, ± half of a 95% interval:
                       parameters  gap             after temperature  excess exponent
  prose_characters:0.1M   102,784  +0.100 ± 0.020  +0.030 ± 0.021     -0.000 ± 0.003
  prose_characters:0.3M   338,688  +0.064 ± 0.022  +0.015 ± 0.023     -0.001 ± 0.004
  code_characters:0.3M    357,024  +0.166 ± 0.068  -0.063 ± 0.079     -0.016 ± 0.017
  prose_tokens:0.3M       529,056  +0.399 ± 0.037  -0.034 ± 0.040     -0.001 ± 0.002
  code_tokens:0.3M        529,056  +0.596 ± 0.091  -0.162 ± 0.090     -0.001 ± 0.007
The size 1M, the other seeds, and the sizes 3M and 10M: not measured yet.
"""

from ml_collections import ConfigDict

from experiments.entropy_rate.ladder import EntropyRateConfig
from lm.configuration import to_config_dict
from lm.data.config import DataConfig, TokenizerConfig
from lm.modules.config import ModelConfig
from lm.runs.config import OptimizerConfig, PretrainConfig, SamplesConfig, TrainingConfig

LENGTH = 544  # a prompt of 32 tokens and a text of 512: what is generated is never longer than the training windows
SUBWORDS = TokenizerConfig(kind="bpe", vocab_size=2048, end_of_text=False)


def get_config() -> ConfigDict:
    config = EntropyRateConfig(
        prose_characters=run(
            # Validation on the last tenth, as in configs/shakespeare_char.py.
            DataConfig(source="tfds:tiny_shakespeare", validation_split="validation+test", random_offsets=True),
            TokenizerConfig(kind="characters", end_of_text=False),  # 65 symbols
        ),
        # Addresses to the American Congress; any folder of texts works too.
        prose_tokens=run(text("text:$LM_DATA_DIR/sotu/sotu.txt.gz", document_separator="blank_line"), SUBWORDS),
        code_characters=run(text("python:stdlib"), TokenizerConfig(kind="bytes", end_of_text=False)),
        code_tokens=run(text("python:stdlib"), SUBWORDS),
        # The breadth of the ladder first: the table is written after each model.
        ladder=(
            "prose_characters:0.1M:0",
            "prose_characters:0.3M:0",
            "code_characters:0.3M:0",
            "prose_tokens:0.3M:0",
            "code_tokens:0.3M:0",
            "prose_characters:1M:0",
            *(f"prose_characters:{size}:{seed}" for size in ("0.1M", "0.3M") for seed in (1, 2)),
        ),
    )
    return to_config_dict(config)


def text(source: str, **settings) -> DataConfig:
    """Data whose documents are split by their content."""
    return DataConfig(source=source, random_offsets=True, **settings)


def run(data: DataConfig, tokenizer: TokenizerConfig) -> PretrainConfig:
    """A run, whose size is set by the rung."""
    return PretrainConfig(
        model=ModelConfig(max_length=LENGTH, positions="rotary", normalization="rms_norm", bias=False),
        data=data,
        tokenizer=tokenizer,
        optimizer=OptimizerConfig(
            name="muon", learning_rate=0.02, schedule="linear", warmup_steps=50, final_learning_rate=0.0
        ),
        training=TrainingConfig(
            steps=400, batch_size=4, evaluation_batch_size=16, evaluate_every=400, checkpoint_every=100, log_every=50
        ),
        samples=SamplesConfig(prompts=()),
    )
