"""Shakespeare, character by character: nanoGPT's small settings.

python -m experiments.pretrain --config=configs/shakespeare_char.py:cpu --workdir=runs/shakespeare_cpu
"""

from ml_collections import ConfigDict

from lm.configuration import to_config_dict
from lm.data.config import DataConfig, TokenizerConfig
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
from lm.modules.config import TransformerConfig
from lm.training.config import PretrainConfig, SamplesConfig, TrainingConfig
from lm.training.optimizers import OptimizerConfig

# nanoGPT's validation text is the last tenth, which the catalogue set parts into validation and test.
DATA = DataConfig(source="tfds:tiny_shakespeare", validation_split="validation+test", random_offsets=True)
TOKENIZER = TokenizerConfig(kind="characters", end_of_text=False)  # 65 symbols
SAMPLES = SamplesConfig(prompts=("\n",), sampling=SamplingConfig(max_new_tokens=500, temperature=0.8))


def get_config(setting: str = "cpu") -> ConfigDict:
    settings = {"cpu": cpu}
    if setting not in settings:
        raise UserError(f"configs/shakespeare_char.py has the settings {', '.join(settings)}; got {setting!r}")
    return to_config_dict(settings[setting]())


def cpu() -> PretrainConfig:
    return PretrainConfig(
        seed=0,
        model=TransformerConfig(layers=4, width=128, heads=4, max_length=64),
        data=DATA,
        tokenizer=TOKENIZER,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, b2=0.99, decay_embeddings=True),
        training=TrainingConfig(
            steps=2000,
            batch_size=12,
            evaluation_batch_size=256,
            evaluate_every=500,
            checkpoint_every=500,
            log_every=100,
        ),
        samples=SAMPLES,
    )
