"""A model that was converted to GGUF is the model that it was: its config, its weights and its outputs."""

import numpy as np
import pytest

from lm.pretrained.gguf_configs import ARCHITECTURES
from lm.pretrained.gguf_files import read_gguf
from tests.pretrained.gguf_writing import MODELS, kept_weights, tiny_model, untie, write_model

pytest.importorskip("gguf")
pytest.importorskip("torch")
pytest.importorskip("transformers")

# Of training, of the library or of the file, or not used by the model.
NOT_IN_GGUF = {"architectures", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path"}


def test_every_architecture_is_tried():
    assert {architecture for architecture, _, _ in MODELS.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("case", MODELS)
def test_a_converted_model_is_the_same(case, tmp_path):
    import torch

    model = tiny_model(case)
    path = tmp_path / "model.gguf"
    write_model(path, case, model)
    found = read_gguf(path)

    config = type(model.config)(**found.config)
    expected = {key: value for key, value in model.config.to_dict().items() if key not in NOT_IN_GGUF}
    assert {key: value for key, value in config.to_dict().items() if key in expected} == expected
    assert found.config["architectures"] == [type(model).__name__]

    # Published files of GPT-NeoX still have transformers 4's name.
    renamed = {"embed_out.weight": "lm_head.weight"}
    shapes = {renamed.get(name, name): shape for name, shape in found.tensors.shapes.items()}
    arrays = {renamed.get(name, name): found.tensors.read(name) for name in found.tensors.shapes}
    weights = kept_weights(model)
    assert shapes == {name: array.shape for name, array in weights.items()}
    for name, array in weights.items():
        # Gemma's norms were stored with 1 added.
        np.testing.assert_allclose(arrays[name], array, rtol=0, atol=1e-6 * ("norm" in name and "gemma" in case))
        assert arrays[name].shape == shapes[name]

    again = type(model)(config).eval()
    if case == "t5 1.1":
        untie(again)
    state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    assert not again.load_state_dict(state, strict=False).unexpected_keys
    tokens = {"input_ids": torch.arange(1, 25).reshape(1, 24)}
    if case.startswith("t5"):
        tokens["decoder_input_ids"] = tokens["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(again(**tokens)[0], model(**tokens)[0], rtol=1e-4, atol=1e-5)
