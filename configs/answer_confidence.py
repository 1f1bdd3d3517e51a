"""Confidence in whole answers: probabilities, agreement of samples, P(True), stated percentages.

python -m experiments.answer_confidence --config=configs/answer_confidence.py --config.model=gguf:FILE \\
    --workdir=runs/answers

Rows have `question` and `answer` (a text or a list of accepted ones): set config.data.train, validation and test, and
config.prompt.item if they also have a context. docs/answer_confidence.md says what each confidence is.

With :xquad, passages of XQuAD (English) in xquad_passages/, which a few lines in docs/answer_confidence.md write.

Measured with SmolLM2-135M-Instruct and MiniLM (:xquad, seed 0, two busy CPU cores, half an hour): 128 test rows,
accuracy 28.1% (95% interval 19.4 to 36.8%).
                            ECE, % (interval; floor)   AUROC (interval)
  probability of the answer  18.9 (11.4-25.5;  9.0)    .866 (.805-.936)
  probability per token      29.5 (21.7-35.6; 10.3)    .819 (.749-.896)
  agreement, same words      10.0 ( 0.0-14.1;  7.2)    .836 (.749-.935)
  agreement, same meaning     9.6 ( 0.0-12.5;  6.9)    .844 (.773-.922)
  semantic entropy           13.3 ( 6.3-17.3;  6.5)    .832 (.759-.911)
  P(True)                    17.3 ( 8.4-22.8;  8.7)    .348 (.234-.450)
  stated                     65.4 (57.0-74.4;  6.9)    .541 (.508-.570)
"""

from ml_collections import ConfigDict

from experiments.answer_confidence.config import AnswerConfidenceConfig
from experiments.answer_confidence.similarity import SimilarityConfig
from lm.configuration import to_config_dict
from lm.data.config import ExamplesConfig
from lm.errors import UserError
from lm.inference.whole_answers import AnsweringConfig
from lm.prompting.config import PromptConfig
from lm.prompting.questions import JudgingConfig

# One example makes answers short; with the model's chat template and no example they were sentences.
EXAMPLE = """\
Answer each question with a few words from the text.

Text: The Nile flows north and ends in Egypt.
Question: Where does the Nile end?
Answer: Egypt"""
JUDGED = """\
Question: What is the capital of France?
Proposed answer: Paris
Is the proposed answer true or false? It is true

Question: How many legs does a spider have?
Proposed answer: six
Is the proposed answer true or false? It is false

"""
PASSAGE = "Text: {context}\nQuestion: {question}\n"

CONFIGS = {
    "": AnswerConfidenceConfig(),
    "xquad": AnswerConfidenceConfig(
        data=ExamplesConfig(
            train="jsonl:xquad_passages/train.jsonl", test="jsonl:xquad_passages/test.jsonl", validation_fraction=0.9
        ),
        prompt=PromptConfig(instruction=EXAMPLE, item=f"{PASSAGE}Answer:"),
        judging=JudgingConfig(
            item=f"{JUDGED}{PASSAGE}Proposed answer: {{proposed}}\nIs the proposed answer true or false? It is",
            stated=f"{PASSAGE}Proposed answer: {{proposed}}\n"
            "How likely is it that the proposed answer is right, from 0% to 100%?\nProbability:",
            tokens=6,
        ),
        answering=AnsweringConfig(samples=8, max_new_tokens=12),
        similarity=SimilarityConfig(least_cosine=0.8),
        validation_rows=96,
        test_rows=128,
    ),
}


def get_config(name: str = "") -> ConfigDict:
    if name not in CONFIGS:
        raise UserError(
            f"configs/answer_confidence.py has the settings {', '.join(filter(None, CONFIGS))}; got {name!r}"
        )
    return to_config_dict(CONFIGS[name])
