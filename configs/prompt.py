"""Prompting a language model to classify: sentiment, topics, kinds of question, entailment, or rows of your own.

python -m experiments.prompt --config=configs/prompt.py:sst2 --config.model=gguf:FILE --workdir=runs/prompted_sst2
python -m experiments.calibrate --config=configs/calibrate_prompt.py --workdir=runs/prompted_sst2

Settings: sst2 and sst5 (sentiment of films, two and five classes), ag_news, trec, sick (entailment), and reviews
(sentiment, calibrated on Yelp's and tested on Amazon's). Data: the folders of these names in LM_DATA_DIR, for reviews
uci_sentences; columns `text` and `label`, of sick `premise`, `hypothesis` and `label`.

Without a name: your own rows with `text` and `label`, as docs/your_data.md says; set config.data.train,
config.data.test and config.prompt.item.

Measured with SmolLM2-135M-Instruct (Q4_1), 500 test rows each, in percent; a 95% interval of an accuracy is at most 4.4
points either way. 4 shots: mean and standard error over seeds 0, 1 and 2. configs/protocol.py says what calibrators
make of them.
           0 shots                            4 shots
           accuracy  ECE (floor) label mass  accuracy     ECE          label mass
  sst2     69.2       8.1 (4.1)   1.1        51.0 ±  1.1  38.6 ±  3.6  80.2 ±  2.9
  ag_news  65.6       5.8 (5.0)   1.7        48.9 ±  0.1  20.2 ±  1.0  65.9 ±  2.6
  trec     47.0       8.3 (5.2)   0.6        26.8 ± 10.5  45.3 ± 14.0   8.6 ±  2.2
  sick     33.8      18.3 (4.3)  22.0        41.7 ±  8.2  11.2 ±  4.4  79.5 ±  1.8
  sst5     34.2      30.3 (4.6)   1.2        27.1 ±  1.1  19.9 ±  3.1  46.4 ±  7.2
  reviews  68.8      11.4 (3.7)   8.2        59.3 ±  3.9  25.6 ±  4.4  83.3 ±  1.3
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
        prompt=PromptConfig(
            item="Article: {text}\nTopic:",
            answers=("Business= Business", "Sci/Tech= Technology", "Sports= Sports", "World= World"),
            truncate=True,
        ),
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
    "sick": PromptedRunConfig(
        data=ExamplesConfig(
            train=f"{FOLDER}/sick/train.jsonl",
            validation=f"{FOLDER}/sick/trial.jsonl",
            test=f"{FOLDER}/sick/test.jsonl",
        ),
        prompt=PromptConfig(
            item="{premise}\nQuestion: {hypothesis}. True, False or Neither?\nAnswer:",
            answers=("entailment= True", "contradiction= False", "neutral= Neither"),
        ),
        test_rows=500,
    ),
    "sst5": PromptedRunConfig(
        data=ExamplesConfig(
            train=f"{FOLDER}/sst5/train.jsonl",
            validation=f"{FOLDER}/sst5/validation.jsonl",
            test=f"{FOLDER}/sst5/test.jsonl",
        ),
        prompt=PromptConfig(
            item="Review: {text}\nSentiment:",
            answers=("0= Very negative", "1= Negative", "2= Neutral", "3= Positive", "4= Very positive"),
        ),
        test_rows=500,
    ),
    "reviews": PromptedRunConfig(
        data=ExamplesConfig(
            train=f"{FOLDER}/uci_sentences/yelp.jsonl",
            test=f"{FOLDER}/uci_sentences/amazon.jsonl",
            validation_fraction=0.3,
        ),
        prompt=PromptConfig(item="Review: {text}\nSentiment:", answers=("0= Negative", "1= Positive")),
        test_rows=500,
    ),
}


def get_config(name: str = "") -> ConfigDict:
    if name not in CONFIGS:
        raise UserError(f"configs/prompt.py has the settings {', '.join(filter(None, CONFIGS))}; got {name!r}")
    return to_config_dict(CONFIGS[name])
