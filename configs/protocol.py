"""The protocol table: which calibration of a prompted model looks best, and how often the protocol decides it.

python -m experiments.protocol --config=configs/protocol.py --config.model=gguf:FILE --workdir=runs/protocol

Data: as configs/prompt.py. Every setting is a run of its own in the work directory's folder `runs`.

Measured with SmolLM2-135M-Instruct, --config.shots="(0,)" --config.orders=1: 30 settings, 500 test rows each, 90 CPU
minutes on two busy cores. The share of conclusions "A is better calibrated than B" that flip with a change (95%
interval over six data sets), and that survive paired tests before and after:
  other test items (half and half)  13% (6% to 21%)      61%
  ECE in bins of equal mass         4% (2% to 6%)        72%
  Brier score instead of ECE        30% (12% to 48%)     56%
  NLL instead of ECE                32% (14% to 49%)     56%
  answers scored per token          6% (0% to 16%)       71%
  answers scored per byte           39% (34% to 43%)     37%
  letters instead of text           40% (20% to 59%)     42%
  another draw of the shots         18% (12% to 24%)     65%
  another number of shots           25% (11% to 39%)     50%
  published link, p - prior         33% (18% to 49%)     46%
  published link, p / prior         15% (8% to 23%)      58%
  a temperature after both          37% (23% to 52%)     29%
  temperature and bias after both   50% (40% to 59%)     18%

ECE (floor) with four shots: uncalibrated 26.8% (3.8%), shift 13.6% (4.2%), shift and a temperature 6.0% (3.8%).
Shift, then temperature and bias: lower NLL than the uncalibrated model in 22 of 24 settings with 4 labels, in 24 with
8 or more. docs/prompting.md has both tables.
"""

from ml_collections import ConfigDict

from configs.prompt import CONFIGS
from experiments.protocol.settings import ProtocolConfig
from lm.configuration import to_config_dict


def get_config() -> ConfigDict:
    return to_config_dict(ProtocolConfig(**{name: config for name, config in CONFIGS.items() if name}))
