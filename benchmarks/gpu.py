"""Times training steps and generation on one GPU, beside PyTorch and transformers.

python -m benchmarks.gpu

Each row runs in a process of its own, one after the other, so that none takes another's memory: a matrix product, steps
of GPT-2 124M (ours unrolled and with scanned layers, and PyTorch's compiled one, all in bfloat16 with float32
parameters), steps of a Llama-like model of 1.1 billion parameters, and generation with SmolLM2's shape and random
weights, for one row and for eight. It prints medians after warming up, and MFU, the share of the device's peak for 16
bits. A row that fails says why. Needs the extras `cuda` and `benchmark`, with a CUDA build of PyTorch. `--toy`
shows on any machine that it runs. Not run on a GPU yet.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lm.runs.config import PretrainConfig

_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense products of 16-bit numbers, in operations a second
_SECONDS_A_ROW = 120


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured, and a toy of it."""

    product: int = 8192
    rows: int = 32
    llama_rows: int = 8
    steps: int = 10
    new_tokens: int = 128
    overrides: tuple[tuple[str, str], ...] = ()


TOY = Sizes(
    product=256,
    rows=2,
    llama_rows=2,
    steps=2,
    new_tokens=4,
    overrides=(
        ("model.layers", "2"),
        ("model.width", "64"),
        ("model.heads", "4"),
        ("model.max_length", "32"),
        ("model.vocab_size", "500"),
    ),
)


def main() -> None:
    """Runs the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="tiny sizes, on any device")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), help="which rows (default: all)")
    parser.add_argument("--worker", choices=list(ROWS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(ROWS[arguments.worker](TOY if arguments.toy else Sizes())))
        return
    for name in arguments.rows:
        print(f"{name:44} {_run(name, arguments.toy)}", flush=True)


def _run(name: str, toy: bool) -> str:
    """A row's result, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--worker", name, *(["--toy"] if toy else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS_A_ROW, check=False)
    except subprocess.TimeoutExpired:
        return f"more than {_SECONDS_A_ROW} s"
    if done.returncode:
        return "failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def _median_seconds(work: Callable[[], object], times: int) -> float:
    """Of calls that wait for their result, after two that do not count."""
    found = []
    for _ in range(times + 2):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found[2:])


def _share_of_peak(device: str, flops_a_second: float) -> str:
    peak = next((peak for name, peak in _PEAKS.items() if name in device), None)
    rate = f"{flops_a_second / 1e12:.4g} TFLOP/s"
    return rate if peak is None else f"{rate} = {flops_a_second / peak:.1%} of the peak"


def _our_product(sizes: Sizes) -> str:
    import jax
    import jax.numpy as jnp

    matrix = jnp.ones((sizes.product, sizes.product), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    seconds = _median_seconds(lambda: product(matrix, matrix).block_until_ready(), sizes.steps)
    return _share_of_peak(jax.devices()[0].device_kind, 2 * sizes.product**3 / seconds)


def _their_product(sizes: Sizes) -> str:
    import torch

    device = _torch_device()
    matrix = torch.ones(sizes.product, sizes.product, dtype=torch.bfloat16, device=device)
    seconds = _median_seconds(lambda: (matrix @ matrix)[0, 0].item(), sizes.steps)
    return _share_of_peak(_torch_name(), 2 * sizes.product**3 / seconds)


def _config(name: str, rows: int, sizes: Sizes, **overrides: str) -> PretrainConfig:
    from lm.config_files import load_config

    settings = {"training.batch_size": str(rows), "training.micro_batches": "1", **dict(sizes.overrides)}
    if "model.layers" in settings and name == "llama_1b":
        settings |= {"model.kv_heads": "2", "model.feed_forward_width": "128"}
    return load_config(name, (PretrainConfig,), settings | {f"model.{key}": value for key, value in overrides.items()})


def _our_step(config: PretrainConfig, sizes: Sizes) -> str:
    import jax

    from lm.models.accounting import training_flops_per_token
    from lm.models.decoder_lm import DecoderLM
    from lm.objectives.causal_lm import CausalLM
    from lm.training.optimizers import make_optimizer
    from lm.training.partitioning import one_device_partitioner
    from lm.training.step import init_state, make_train_step

    partitioner, model = one_device_partitioner(), config.model
    task = CausalLM(DecoderLM(model, partitioner.mesh), config.objective, one_segment=True)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    state = partitioner.compile_init(lambda key: init_state(task, optimizer, config.optimizer, key))(jax.random.key(0))
    train_step = partitioner.compile_train_step(make_train_step(task, optimizer, config.optimizer, seed=0))
    tokens = _tokens(config)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones_like(tokens[:, 1:], np.float32)}
    placed = partitioner.place_batch(batch)

    def step() -> None:
        nonlocal state
        state, sums = train_step(state, placed)
        sums["loss"].block_until_ready()

    seconds = _median_seconds(step, sizes.steps)
    flops = batch["tokens"].size * training_flops_per_token(model, model.size_of_sequence)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return _step_line(seconds, batch["tokens"].size, flops, jax.devices()[0].device_kind, peak)


def _their_step(config: PretrainConfig, sizes: Sizes) -> str:
    import torch

    from benchmarks.pytorch_gpt2 import PyTorchStep
    from lm.models.accounting import training_flops_per_token

    model, device = config.model, _torch_device()
    vocab_size = model.vocab_size
    assert vocab_size is not None
    step = PyTorchStep(
        model.layers, model.width, model.heads, model.size_of_sequence, vocab_size, compiled=True, device=device
    )
    tokens = torch.from_numpy(_tokens(config)).long().to(device)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    seconds = _median_seconds(lambda: step(inputs, targets), sizes.steps)
    flops = inputs.numel() * training_flops_per_token(model, model.size_of_sequence)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return _step_line(seconds, inputs.numel(), flops, _torch_name(), peak)


def _step_line(seconds: float, tokens: int, flops: float, device: str, peak: int) -> str:
    memory = f", peak {peak / 1e9:.1f} GB" if peak else ""
    return (
        f"{1e3 * seconds:.1f} ms, {tokens / seconds:,.0f} tokens/s, {_share_of_peak(device, flops / seconds)}{memory}"
    )


def _tokens(config: PretrainConfig) -> np.ndarray:
    """Random ids, [rows, length + 1]."""
    shape = config.training.batch_size, config.model.size_of_sequence + 1
    return np.random.default_rng(0).integers(0, config.model.vocab_size, shape).astype(np.int32)


def _our_generation(rows: int, sizes: Sizes) -> str:
    import jax
    import jax.numpy as jnp

    from lm.decoding.sample import generate
    from lm.decoding.sampling import SamplingConfig
    from lm.models.decoder_lm import DecoderLM
    from lm.modules.config import ModelConfig

    config = ModelConfig(**SMOLLM2, dtype="bfloat16", parameter_dtype="bfloat16")
    model = DecoderLM(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    prompts = np.random.default_rng(rows).integers(0, 40_000, (rows, 64)).tolist()
    sampling = SamplingConfig(max_new_tokens=sizes.new_tokens, temperature=0.0)
    seconds = _median_seconds(lambda: generate(model, params, prompts, sampling), max(sizes.steps // 2, 2))
    return _generation_line(rows, sizes, seconds)


def _their_generation(rows: int, sizes: Sizes) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    config = LlamaConfig(vocab_size=49_152, num_key_value_heads=3, tie_word_embeddings=True, **shape)
    model = LlamaForCausalLM(config).to(_torch_device(), torch.bfloat16).eval()
    prompts = torch.randint(0, 40_000, (rows, 64), device=_torch_device())
    lengths = {"max_new_tokens": sizes.new_tokens, "min_new_tokens": sizes.new_tokens}

    def work() -> None:
        with torch.inference_mode():
            mask = torch.ones_like(prompts)
            whole = model.generate(prompts, attention_mask=mask, do_sample=False, pad_token_id=0, **lengths)
        whole[0, -1].item()

    return _generation_line(rows, sizes, _median_seconds(work, 2))


def _generation_line(rows: int, sizes: Sizes, seconds: float) -> str:
    each = seconds / sizes.new_tokens
    return f"{rows * sizes.new_tokens / seconds:,.0f} tokens/s, {1e3 * each:.2f} ms a step, reading 64 tokens included"


def _torch_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _torch_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


SMOLLM2: dict[str, Any] = {
    **{"vocab_size": 49_152, "layers": 30, "width": 576, "heads": 9, "kv_heads": 3, "feed_forward_width": 1536},
    **{"positions": "rotary", "normalization": "rms_norm", "activation": "swiglu", "bias": False},
    "max_length": 2048,
}
ROWS: dict[str, Callable[[Sizes], str]] = {
    "product, ours": _our_product,
    "product, PyTorch": _their_product,
    "GPT-2 124M, ours": lambda sizes: _our_step(_config("gpt2_124m", sizes.rows, sizes), sizes),
    "GPT-2 124M, ours, scanned": lambda sizes: _our_step(
        _config("gpt2_124m", sizes.rows, sizes, scan_layers="True"), sizes
    ),
    "GPT-2 124M, PyTorch compiled": lambda sizes: _their_step(_config("gpt2_124m", sizes.rows, sizes), sizes),
    "Llama 1.1B, ours": lambda sizes: _our_step(_config("llama_1b", sizes.llama_rows, sizes), sizes),
    "generation, 1 row, ours": lambda sizes: _our_generation(1, sizes),
    "generation, 1 row, transformers": lambda sizes: _their_generation(1, sizes),
    "generation, 8 rows, ours": lambda sizes: _our_generation(8, sizes),
    "generation, 8 rows, transformers": lambda sizes: _their_generation(8, sizes),
}


if __name__ == "__main__":
    main()
