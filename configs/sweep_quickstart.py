"""Which learning rate and dropout suit a small model of Python source code?

python -m experiments.sweep --config=configs/sweep_quickstart.py --workdir=runs/sweep
Eight runs of configs/quickstart.py, fewer steps where one is pruned. Two CPU cores: not measured yet.
"""

from ml_collections import ConfigDict

from experiments.sweep import SweepConfig
from lm.configuration import to_config_dict


def get_config() -> ConfigDict:
    config = SweepConfig(
        base="configs/quickstart.py",
        parameters=("optimizer.learning_rate=2e-3..1e-1 log", "model.dropout=0.0,0.1"),
        method="bayes",
        trials=8,
        pruning="median",
    )
    return to_config_dict(config)
