"""Calibration of a prompted model: without labels, with a few, and as published.

python -m experiments.calibrate --config=configs/calibrate_prompt.py --workdir=runs/prompted_sst2

The predictions are those of experiments.prompt: calibrators are fitted to the validation rows (those that need no
labels do not see them) and tested on the test rows. docs/prompting.md says what each one does.

Measured for SST-2 with SmolLM2-135M-Instruct and four shots (seed 0), fitted to 256 rows, tested on 500; 95% intervals:
                                   ECE, % (interval; floor)  NLL     accuracy, %
  uncalibrated                     31.5 (27.8-35.1; 3.3)     0.8083  53.2
  contextual                        7.2 ( 3.0- 9.1; 4.0)     0.5020  72.4
  domain context                   14.2 (11.2-16.4; 4.2)     0.4119  85.6
  PMI                               5.7 ( 0.0- 7.0; 4.0)     0.4744  76.0
  batch, mean probability          10.7 ( 7.5-12.8; 4.0)     0.4279  83.2
  shift                            15.5 (12.7-18.1; 4.1)     0.4082  87.0
  shift, then temperature and bias  4.7 ( 0.0- 5.8; 3.4)     0.3216  86.8
  temperature                      26.0 (22.6-29.5; 3.6)     0.6276  53.2
  temperature and bias              4.7 ( 0.0- 5.6; 3.4)     0.3205  86.8
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
