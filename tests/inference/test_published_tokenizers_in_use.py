"""Models in use with a published tokenizer: its own mask, what its prompts begin with, and its place on disk."""

import jax
import numpy as np
import pytest

from lm.data.frames import Frame
from lm.data.published_backends import set_frame
from lm.data.special_tokens import SpecialTokens
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.inference.load import in_use
from lm.modules.config import ModelConfig
from lm.objectives.objective import ObjectiveConfig
from lm.objectives.registry import make_task
from lm.runs.config import PretrainConfig
from lm.runs.trained_run import TrainedRun
from lm.runs.work_directory import WorkDirectory, with_vocabulary
from tests.data.published_files import make_backend

ROLES = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "mask": "<mask>"}


def make_tokenizer(frame=None, roles=ROLES, **settings):
    backend = make_backend()
    set_frame(backend, frame or Frame((1,), (2, 2), (2,), second_type=0))
    return Tokenizer(backend, published=SpecialTokens(roles, **settings))


def make_model(objective, architecture, tokenizer):
    model = ModelConfig(architecture=architecture, layers=1, width=8, heads=2, max_length=8)
    config = PretrainConfig(model=model, objective=ObjectiveConfig(name=objective))
    config = with_vocabulary(config, tokenizer)
    task = make_task(config.objective, config.model, tokenizer)
    return in_use(TrainedRun(config, tokenizer, (), task, jax.jit(task.init)(jax.random.key(0)), 0))


def test_a_masked_model_is_filled_at_its_own_mask():
    model = make_model("masked", "encoder", make_tokenizer())
    own, ours = model.fill(["a <mask> b", "a [MASK] b"], top=2)
    assert own == ours
    assert len(own) == 1
    logits_TV = jax.jit(model.model.apply)({"params": model.params}, np.array([[1, 6, 4, 7, 2]]))[0]
    np.testing.assert_allclose(own[0].probabilities, np.sort(jax.nn.softmax(logits_TV[2]))[::-1][:2], rtol=1e-4)
    with pytest.raises(UserError, match=r"text 1 has no <mask> or \[MASK\]"):
        model.fill(["a b"])


def test_prompts_begin_as_the_tokenizer_says():
    tokenizer = make_tokenizer(Frame((1,), (1,), ()))
    assert make_model("causal", "decoder", tokenizer).prompt_tokens(["a </s>", ""]) == [[1, 6, 0], [1]]
    plain = make_tokenizer(Frame(), {"eos": "</s>"})
    assert make_model("causal", "decoder", plain).prompt_tokens(["a", ""]) == [[6], [2]]


def test_a_run_keeps_the_special_tokens(tmp_path):
    directory, config = WorkDirectory(tmp_path), PretrainConfig()
    tokenizer = make_tokenizer(end_tokens=("<end>",), chat_template="{{ bos_token }}")
    directory.claim(config, tokenizer)
    kept = Tokenizer.load(directory.tokenizer)
    assert (kept.published, kept.frame, kept.ends) == (tokenizer.published, tokenizer.frame, (2, 5))
    before = directory.origin(config)
    directory.special_tokens.write_text('{"eos_token": "<end>"}')
    changed = directory.origin(config)
    assert {name for name in before if before[name] != changed[name]} == {"tokenizer_config.json"}


def test_a_tokenizer_that_is_too_large_for_the_model_is_named():
    config = PretrainConfig(model=ModelConfig(vocab_size=8))
    with pytest.raises(UserError, match=r"vocab_size=8 is smaller than the tokenizer's 9: .* no embeddings"):
        with_vocabulary(config, make_tokenizer())
