"""Prompting a language model to classify: sentiment, topics of news, kinds of question, or rows of your own.

python -m experiments.prompt --config=configs/prompt.py:sst2 --config.model=gguf:FILE --workdir=runs/prompted_sst2
python -m experiments.calibrate --config=configs/calibrate_prompt.py --workdir=runs/prompted_sst2

Data: as configs/sst2.py (sst2), configs/ag_news.py (ag_news) and configs/trec.py (trec). Without a name: your own rows
with `text` and `label`, as docs/your_data.md says; set config.data.train, config.data.test and config.prompt.item.

Not measured yet.
"""

from ml_collections import ConfigDict

from lm.configuration import to_config_dict
from lm.data.config import ExamplesConfig
from lm.errors import UserError
from lm.prompting.config import PromptConfig
from lm.runs.prompted_run import PromptedRunConfig

FOLDER = "jsonl:$LM_DATA_DIR"
CONFIGS = {
    "": PromptedRunConfig(prompt=PromptConfig(item="Text: {text}\nLabel:", truncate=True)),
    "sst2": PromptedRunConfig(
        data=ExamplesConfig(
            train=f"{FOLDER}/sst2/train.jsonl",
            validation=f"{FOLDER}/sst2/validation.jsonl",
            test=f"{FOLDER}/sst2/test.jsonl",
        ),
        prompt=PromptConfig(item="Review: {text}\nSentiment:", answers=("0= Negative", "1= Positive")),
        test_rows=500,
    ),
    "ag_news": PromptedRunConfig(
        data=ExamplesConfig(train=f"{FOLDER}/ag_news/train.jsonl", test=f"{FOLDER}/ag_news/test.jsonl"),
        prompt=PromptConfig(item="Article: {text}\nTopic:", answers=("Sci/Tech= Technology",), truncate=True),
        test_rows=500,
    ),
    "trec": PromptedRunConfig(
        data=ExamplesConfig(train=f"{FOLDER}/trec/train.jsonl", test=f"{FOLDER}/trec/test.jsonl"),
        prompt=PromptConfig(
            instruction="Classify the questions by the kind of their answer.",
            item="Question: {text}\nAnswer type:",
            answers=(
                "ABBR= Abbreviation",
                "DESC= Description",
                "ENTY= Entity",
                "HUM= Person",
                "LOC= Location",
                "NUM= Number",
            ),
        ),
    ),
}


def get_config(name: str = "") -> ConfigDict:
    if name not in CONFIGS:
        raise UserError(f"configs/prompt.py has the settings {', '.join(filter(None, CONFIGS))}; got {name!r}")
    return to_config_dict(CONFIGS[name])
