"""Encoders with a head, of transformers' classes: read, computed and written back the same.

Axes: B texts, T positions.
"""

import dataclasses

import numpy as np
import pytest

from lm.data.config import TokenizerConfig
from lm.data.published_tokenizers import export_tokenizer
from lm.data.tokenizers import train_tokenizer
from lm.pretrained.export import plan_export
from lm.runs.published_runs import load_published
from tests.pretrained.encoder_cases import ENCODERS
from tests.pretrained.published_cases import build
from tests.pretrained.test_encoder_families import SEGMENTS_BT, TOKENS_BT, TYPES_BT

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

HEADS = {
    "classification": "SequenceClassification",
    "tagging": "TokenClassification",
    "question_answering": "QuestionAnswering",
}
PREFIXES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}


def their_outputs(model):
    inputs = {"input_ids": TOKENS_BT, "attention_mask": SEGMENTS_BT}
    if model.config.type_vocab_size > 1:
        inputs["token_type_ids"] = TYPES_BT
    with torch.no_grad():
        found = model(**{name: torch.from_numpy(array.astype(np.int64)) for name, array in inputs.items()})
    return [found[key].numpy() for key in ("logits", "start_logits", "end_logits") if key in found]


def our_outputs(run):
    extra = (SEGMENTS_BT > 0,) if run.config.task.name == "question_answering" else ()
    found = run.task.model.apply({"params": run.params}, TOKENS_BT, SEGMENTS_BT, TYPES_BT, *extra)
    return [np.asarray(array) for array in (found if extra else (found,))]


@pytest.mark.parametrize(
    ("name", "task"), [*(("bert", task) for task in HEADS), *((name, "classification") for name in list(PREFIXES)[1:])]
)
def test_a_head_computes_the_same_and_is_written_back(name, task, tmp_path):
    case = next(case for case in ENCODERS if case.name == name)
    case = dataclasses.replace(case, model=f"{PREFIXES[name]}For{HEADS[task]}")
    reference, source, copy = build(case, transformers, torch), tmp_path / "source", tmp_path / "copy"
    reference.save_pretrained(source)
    tokenizer = train_tokenizer(TokenizerConfig("words", vocab_size=50), ["the film"])
    export_tokenizer(tokenizer.with_special_tokens(["[CLS]", "[SEP]", "[MASK]"]), source)
    run = load_published(f"hf:{source}")
    settings = dataclasses.asdict(run.config.task)
    assert settings["name"] == task
    plan = plan_export(run.model_config, run.params, settings, run.classes, run.config.imported_type)
    plan.write(copy, run.params, run.tokenizer)
    written = getattr(transformers, plan.values["architectures"][0])
    written = written.from_pretrained(copy, attn_implementation="eager").eval()
    seen = SEGMENTS_BT > 0
    for ours, theirs, again in zip(our_outputs(run), their_outputs(reference), their_outputs(written), strict=True):
        where = seen if ours.shape[:2] == seen.shape else slice(None)
        np.testing.assert_array_equal(again, theirs)
        np.testing.assert_allclose(ours[where], theirs[where], atol=1e-5 * np.abs(theirs).max())
