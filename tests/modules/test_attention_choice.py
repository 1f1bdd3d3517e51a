"""Which attention a call uses, by device, model and call."""

import dataclasses
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from lm.models.build import make_language_model
from lm.modules import attention, attention_choice, splash
from lm.modules.attention_choice import (
    AttentionCall,
    Target,
    choose_attention,
    describe_attention,
    platform_of,
    resolve_attention,
)
from lm.modules.config import ModelConfig

CPU, TPU, CUDA, GPU = (Target(name) for name in ("cpu", "tpu", "cuda", "gpu"))
HALF = {"dtype": "bfloat16", "width": 128, "heads": 2, "max_length": 256}


@pytest.mark.parametrize(
    ("target", "config", "call", "implementation", "reason"),
    [
        (CPU, {}, {}, "explicit", ""),
        (GPU, {}, {}, "xla", ""),
        (GPU, {}, {"cached": True}, "explicit", ""),
        (CUDA, {}, {}, "cudnn", ""),
        (CUDA, {}, {"segmented": True, "masked": True, "biased": True}, "cudnn", ""),
        (CUDA, {"dtype": "float32"}, {}, "xla", "16-bit"),
        (CUDA, {"attention_softcap": 9.0}, {}, "explicit", "cap scores"),
        (CUDA, {}, {"drops": True}, "explicit", "attention_dropout is not 0"),
        (CUDA, {"dtype": "float32"}, {"drops": True}, "explicit", "16-bit"),
        (CUDA, {}, {"cached": True, "queries": 1}, "explicit", "cache"),
        (CUDA, {"head_width": 136}, {}, "xla", "up to 128 wide"),
        (CUDA, {"head_width": 60}, {}, "xla", "in steps of 8"),
        (CUDA, {}, {"queries": 255}, "cudnn", ""),
        (CUDA, {}, {"queries": 255, "segmented": True}, "xla", "even lengths"),
        (TPU, {}, {}, "splash", ""),
        (TPU, {"dtype": "float32", "attention_softcap": 9.0, "head_width": 60}, {"segmented": True}, "splash", ""),
        (TPU, {}, {"queries": 200}, "xla", "steps of 128"),
        (TPU, {}, {"keys": 0, "cached": True}, "explicit", "cache"),
        (TPU, {}, {"biased": True}, "xla", "relative positions"),
        (TPU, {}, {"masked": True}, "xla", "no mask but"),
        (TPU, {"attention_softcap": 9.0}, {"masked": True}, "explicit", "no mask but"),
        (TPU, {}, {"drops": True}, "explicit", "drops nothing"),
        (Target("tpu", batch_shards=4), {}, {"rows": 6}, "xla", "4 devices do not divide the rows"),
        (Target("tpu", batch_shards=4), {}, {"rows": 8}, "splash", ""),
        (Target("tpu", head_shards=2), {"kv_heads": 1}, {}, "xla", "tensor=2 does not divide the heads"),
        (Target("cuda", head_shards=2), {"kv_heads": 1}, {}, "xla", "tensor=2 does not divide the heads"),
        (CUDA, {"attention": "splash"}, {}, "xla", "needs a TPU"),
        (CPU, {"attention": "cudnn"}, {}, "explicit", "needs an NVIDIA GPU"),
        (GPU, {"attention": "cudnn"}, {}, "xla", "Ampere"),
        (TPU, {"attention": "splash"}, {}, "splash", ""),
        (CUDA, {"attention": "cudnn"}, {"cached": True}, "explicit", "cache"),
        (TPU, {"attention": "xla"}, {"cached": True}, "xla", ""),
        (CUDA, {"attention": "explicit"}, {}, "explicit", ""),
    ],
)
def test_the_rule(target, config, call, implementation, reason):
    call = AttentionCall(**{"queries": 256, "keys": 256} | call)
    choice = choose_attention(ModelConfig(**HALF | config), target, call)
    assert choice.implementation == implementation
    assert reason in choice.reason
    assert bool(choice.reason) == bool(reason)


def test_platforms_of_devices():
    def device(platform, **facts):
        return platform_of(SimpleNamespace(platform=platform, **facts))

    assert [device("cpu"), device("tpu")] == ["cpu", "tpu"]
    assert [device("gpu", compute_capability=name) for name in ("7.5", "8.0", "12.0", "gfx942")] == [
        "gpu",
        "cuda",
        "cuda",
        "gpu",
    ]
    assert device("cuda") == "cuda"  # of a topology


def test_a_run_is_told_what_it_uses(monkeypatch):
    assert describe_attention(ModelConfig()) == "attention: explicit"
    monkeypatch.setattr(attention_choice, "platform_of", lambda device: "tpu")
    decoder = ModelConfig(**HALF)
    assert describe_attention(decoder) == "attention: splash"
    assert describe_attention(decoder, masked=True).startswith("attention: xla (splash attention takes no mask")
    t5 = ModelConfig("encoder_decoder", positions="relative", **HALF)
    words = describe_attention(t5)
    assert words == "self-attention: xla (splash attention takes no relative positions); cross-attention: splash"


def test_a_config_is_resolved_for_another_platform():
    config = ModelConfig(**HALF)
    resolved = [resolve_attention(config, platform).attention for platform in ("cpu", "cuda", "tpu")]
    assert resolved == ["explicit", "cudnn", "splash"]
    dropping = dataclasses.replace(config, attention_dropout=0.1)
    assert resolve_attention(dropping, "tpu").attention == "explicit"
    named = dataclasses.replace(config, attention="xla")
    assert resolve_attention(named, "tpu") == named


QUICKLY = {"xla_backend_optimization_level": 0}
TOKENS = np.random.default_rng(0).integers(1, 16, size=(4, 128))
SEGMENTS = np.sort(np.random.default_rng(1).integers(0, 3, size=(4, 128)), axis=1)
SHAPE = {"vocab_size": 16, "layers": 2, "width": 16, "heads": 2, "max_length": 128}


def outputs(config, mesh=None, gradient=False, segments=SEGMENTS):
    """Logits, or the gradients of the parameters, of a model whose parameters do not depend on the way to compute."""
    model = make_language_model(config, mesh)
    two_sides = config.architecture == "encoder_decoder"
    inputs = (TOKENS, TOKENS, segments, segments) if two_sides else (TOKENS, segments)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs[: 1 + two_sides])["params"]
    random = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: random.normal(0.0, 0.3, leaf.shape).astype(leaf.dtype), shapes)

    def total(params):
        return (model.apply({"params": params}, *inputs) ** 2).mean()

    return jax.jit(jax.grad(total) if gradient else total, compiler_options=QUICKLY)(params)


def test_auto_is_bit_for_bit_explicit_on_cpu():
    config = ModelConfig(**SHAPE)
    auto, explicit = (
        outputs(dataclasses.replace(config, attention=name), gradient=True) for name in ("auto", "explicit")
    )
    chex.assert_trees_all_equal(auto, explicit)


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("name", ["cudnn", "splash"])
def test_init_traces_no_kernel_that_the_host_lacks(name, architecture, monkeypatch):
    platform = {"cudnn": "cuda", "splash": "tpu"}[name]
    monkeypatch.setattr(attention_choice, "platform_of", lambda device: platform)
    model = make_language_model(ModelConfig(architecture, attention=name, dtype="bfloat16", **SHAPE))
    inputs = (TOKENS, TOKENS) if architecture == "encoder_decoder" else (TOKENS,)
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    if name == "cudnn":
        with pytest.raises(RuntimeError, match="cuDNN is not detected"):
            jax.eval_shape(model.apply, params, *inputs)


def on_tpu(monkeypatch):
    """Makes this host a TPU whose kernels run interpreted; returns the calls of these."""
    calls = []

    def interpreted(*arrays, **how):
        calls.append(arrays[3])
        return splash.splash_attention(*arrays, **how, interpret=True)

    monkeypatch.setattr(attention_choice, "platform_of", lambda device: "tpu")
    monkeypatch.setattr(attention, "splash_attention", interpreted)
    return calls


MODELS = {
    "decoder": {"kv_heads": 1},
    "windows": {"attention_window": 9, "global_layers": (1,), "attention_softcap": 2.0},
    "scanned windows": {"attention_window": 9, "global_layers": (1,), "scan_layers": True, "rematerialize": "full"},
    "encoder": {"architecture": "encoder", "attention_window": 9, "global_layers": (1,)},
    "encoder_decoder": {"architecture": "encoder_decoder"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_whole_model_computes_the_same_by_splash(name, monkeypatch):
    config = ModelConfig(**SHAPE | MODELS[name])
    expected = outputs(config, gradient=True)
    calls = on_tpu(monkeypatch)
    chex.assert_trees_all_close(outputs(config, gradient=True), expected, rtol=1e-4, atol=1e-5)
    assert calls
    assert all(visibility.mask_BTS is None and visibility.near_BTS is None for visibility in calls)


@pytest.mark.slow
def test_a_whole_model_computes_the_same_by_splash_on_a_mesh(monkeypatch):
    config = ModelConfig(**SHAPE | MODELS["scanned windows"])
    expected = outputs(config, gradient=True)
    calls = on_tpu(monkeypatch)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    chex.assert_trees_all_close(outputs(config, mesh, gradient=True), expected, rtol=1e-4, atol=1e-5)
    assert calls


@pytest.mark.parametrize(
    ("name", "segments", "windows"),
    [
        ("windows", None, {(8, 0), None}),
        ("windows", SEGMENTS, {None}),
        ("encoder_decoder", SEGMENTS, {None}),
        pytest.param("scanned windows", None, {None}, marks=pytest.mark.slow),
        pytest.param("encoder", None, {None}, marks=pytest.mark.slow),
    ],
)
def test_what_cudnn_is_given_means_the_same(name, segments, windows, monkeypatch):
    """The arguments for cuDNN, which is not here, given to XLA's attention, whose arguments mean the same."""
    config = ModelConfig(**SHAPE | MODELS[name] | {"attention_softcap": None})
    expected, given = outputs(dataclasses.replace(config, attention="xla"), segments=segments), []

    def by_xla(*arrays, implementation, **how):
        assert implementation == "cudnn"
        given.append(how["local_window_size"])
        # A window beside a mask is more than cuDNN before 9.10.2 can do.
        assert given[-1] is None or how["mask"] is None
        return plain(*arrays, implementation="xla", **how)

    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    monkeypatch.setattr(attention_choice, "platform_of", lambda device: "cuda")
    # It refuses float32, in which alone a difference would show.
    monkeypatch.setattr(attention_choice, "_cudnn_refusal", lambda *asked: "")
    np.testing.assert_allclose(outputs(config, segments=segments), expected, rtol=1e-5)
    assert set(given) == windows
