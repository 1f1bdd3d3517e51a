"""Is the quickstart model right as often as it says? Token by token, on files that it has not seen.

python -m experiments.calibrate --config=configs/calibrate_quickstart.py --workdir=runs/quickstart
Two CPU cores: not measured yet.
"""

from ml_collections import ConfigDict

from experiments.calibrate import CalibrateConfig
from lm.configuration import to_config_dict


def get_config() -> ConfigDict:
    # Those whose number of parameters a vocabulary of 2,048 leaves small beside 10,000 tokens.
    return to_config_dict(CalibrateConfig(calibrators=("temperature", "bias", "temperature_bias", "structured_vector")))
