"""Entropy-rate drift of small language models: does what they write grow more random than what they learned from?

python -m experiments.entropy_rate --config=configs/entropy_rate.py --workdir=runs/entropy_rate

Data: the catalogue set tiny_shakespeare below TFDS_DATA_DIR, sotu/sotu.txt.gz below LM_DATA_DIR, Python's own library.
docs/entropy_rate.md says what the columns mean.

Measured on two busy CPU cores, prose_characters:0.1M:0 only (102,784 parameters; 1.5 CPU minutes to train, 4 to
measure), in nats a token, ± half of a 95% interval over 96 prompts (32 for the entropy rate after look-ahead):
               value            loss change         loss           entropy rate   gap             exponent
  none                                              2.157 ± 0.020  2.256 ± 0.006  +0.100 ± 0.020  0.002 ± 0.002
  temperature  0.952            -0.0015 ± 0.0008    2.155 ± 0.020  2.185 ± 0.007  +0.030 ± 0.021  0.000 ± 0.003
  look-ahead   0.036 (SE 0.029) -0.0007 ± 0.0008    2.156 ± 0.020  2.247 ± 0.011  +0.082 ± 0.039  0.002 ± 0.005
The other models of the ladder, and the sizes 3M and 10M: not measured yet.
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
