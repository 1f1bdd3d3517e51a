"""The protocol table: which calibration of a prompted model looks best, and how often the protocol decides it.

python -m experiments.protocol --config=configs/protocol.py --config.model=gguf:FILE --workdir=runs/protocol

Data: as configs/prompt.py. Every setting is a run of its own in the work directory's folder `runs`.

Not measured yet.
"""

from ml_collections import ConfigDict

from configs.prompt import CONFIGS
from experiments.protocol.settings import ProtocolConfig
from lm.configuration import to_config_dict


def get_config() -> ConfigDict:
    return to_config_dict(ProtocolConfig(**{name: config for name, config in CONFIGS.items() if name}))
