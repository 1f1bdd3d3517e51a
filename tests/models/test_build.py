"""Any model from its config, and what there isn't."""

import pytest

from lm.errors import UserError
from lm.models.build import make_body, make_language_model
from lm.models.decoder_lm import DecoderLM
from lm.models.encoder_decoder_lm import EncoderDecoderLM
from lm.models.encoder_lm import EncoderLM
from lm.models.recurrent import RecurrentModel
from lm.modules.config import ARCHITECTURES, ModelConfig

BODIES = {"decoder": DecoderLM, "encoder": EncoderLM, "lstm": RecurrentModel, "gru": RecurrentModel}
LANGUAGE_MODELS = {"decoder": DecoderLM, "encoder": EncoderLM, "encoder_decoder": EncoderDecoderLM}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("make", "known"), [(make_body, BODIES), (make_language_model, LANGUAGE_MODELS)])
def test_an_architecture_is_a_class_or_one_line_that_says_what_to_choose(make, known, architecture):
    config = ModelConfig(architecture=architecture, vocab_size=7)
    if architecture in known:
        model = make(config)
        assert type(model) is known[architecture]
        assert model.config is config
        assert model.mesh is None
        return
    with pytest.raises(UserError, match=rf"^config.model.architecture={architecture} .*choose .*decoder") as caught:
        make(config)
    assert "\n" not in str(caught.value)
