"""Calibration of predictions from any model.

python -m experiments.calibrate --config=configs/calibrate.py --config.predictions=FILE.npz --workdir=runs/mine

FILE.npz holds `logits` [items, classes] (or `log_probs` or `probabilities`) and `labels` [items]; if some items belong
together (sentences of a document, answers to a prompt), also `clusters` [items]. Calibrators are fitted on half of the
items (whole clusters) and evaluated on the other half. Two CPU cores, 4,000 items of 5 classes: 40 seconds.
"""

from ml_collections import ConfigDict

from experiments.calibrate import CalibrateConfig
from lm.configuration import to_config_dict


def get_config() -> ConfigDict:
    return to_config_dict(CalibrateConfig())
