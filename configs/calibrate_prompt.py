"""Calibration of a prompted model: without labels, with a few, and as published.

python -m experiments.calibrate --config=configs/calibrate_prompt.py --workdir=runs/prompted_sst2

The predictions are those of experiments.prompt: calibrators are fitted to the validation rows (those that need no
labels do not see them) and tested on the test rows. docs/prompting.md says what each one does.

Not measured yet.
"""

from ml_collections import ConfigDict

from experiments.calibrate import CalibrateConfig
from lm.configuration import to_config_dict


def get_config() -> ConfigDict:
    config = CalibrateConfig(
        calibrators=(
            "contextual",
            "domain_context",
            "pmi",
            "batch_probabilities",
            "shift",
            "shift_temperature_bias",
            "temperature",
            "temperature_bias",
            "vector",
        )
    )
    return to_config_dict(config)
