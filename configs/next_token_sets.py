"""Conformal sets of next tokens: State of the Union addresses (sotu), short news (ag_news), or a run's own text (own).

python -m experiments.next_token_sets --config=configs/next_token_sets.py --config.model=gguf:FILE \\
    --workdir=runs/next_token_sets
python -m experiments.next_token_sets --config=configs/next_token_sets.py:own --config.model=runs/quickstart \\
    --workdir=runs/quickstart_sets

Data: below the folder that LM_DATA_DIR names, sotu/sotu.txt.gz, addresses with blank lines between them, and
ag_news/test.jsonl, objects with `text`; `own`: the files of the standard library that configs/quickstart.py holds out.
config.data.source names other documents, all of which are used with config.data.validation_fraction=1.

sotu, SmolLM2-135M-Instruct (Q4_1): sets at 90% cover, mean over splits 0, 1, 2 and their standard deviation, and have
so many tokens: LAC 90.0 ± 0.5%, 108 ± 4; APS 90.2 ± 0.5%, 224 ± 6; APS without its random choice 93.6 ± 0.1%, 401 ± 3;
RAPS 90.0 ± 0.2%, 143 ± 8. Of the rarest tenth of the text LAC covers 65%. Two CPU cores that other jobs shared: 30
minutes for the hidden states of 160 documents, 9 for each split. docs/next_token_sets.md has the tables. ag_news:
LAC 90.1 ± 0.9%, 235 ± 29; APS without its random choice 94.9 ± 0.5%, 1,243 ± 112; 17 minutes. own, of a quickstart
run, seed 0: LAC 90.5 ± 2.0%, 119 ± 18; APS without its random choice 97.0 ± 0.3%, 376 ± 78; 25 s on one core.
"""

from ml_collections import ConfigDict

from experiments.next_token_sets.__main__ import NextTokenSetsConfig
from experiments.next_token_sets.documents import WindowConfig
from experiments.next_token_sets.measurement import SetsConfig
from lm.configuration import to_config_dict
from lm.data.config import DataConfig
from lm.errors import UserError

CONFIGS = {
    "sotu": NextTokenSetsConfig(
        data=DataConfig(
            source="text:$LM_DATA_DIR/sotu/sotu.txt.gz", document_separator="blank_line", validation_fraction=1.0
        ),
        documents=160,
    ),
    # Texts of about 55 tokens, so that the frequencies need many of them.
    "ag_news": NextTokenSetsConfig(
        data=DataConfig(source="jsonl:$LM_DATA_DIR/ag_news/test.jsonl", validation_fraction=1.0),
        documents=400,
        windows=WindowConfig(length=64, context=16),
        sets=SetsConfig(fit_share=0.4, test_share=0.3),
    ),
    "own": NextTokenSetsConfig(data=DataConfig(), windows=WindowConfig(length=128, context=64, each=8)),
}


def get_config(name: str = "sotu") -> ConfigDict:
    if name not in CONFIGS:
        raise UserError(f"configs/next_token_sets.py has the settings {', '.join(CONFIGS)}; got {name!r}")
    return to_config_dict(CONFIGS[name])
