"""Times one training step side by side with the same model in PyTorch.

python -m benchmarks.train_step

Each implementation runs in a separate process; the processes take turns, a few steps each, so that other load on the
machine affects all of them equally. It prints medians of the step time, the ratio of PyTorch's better median (eager or
compiled) to ours, with an interval of its logarithm over turns, our rate against our own best matrix product, and the
rates of one product alone, that of the feed-forward layer: a step cannot gain more than its products do. Needs the
extra `benchmark`.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model and a batch."""

    layers: int
    width: int
    heads: int
    length: int
    batch: int
    vocab_size: int


SETTINGS = (Setting(4, 128, 4, 64, 12, 65), Setting(6, 384, 6, 256, 8, 65), Setting(4, 256, 4, 128, 8, 50257))
IMPLEMENTATIONS = ("ours", "pytorch eager", "pytorch compiled")


def main() -> None:
    """Runs the turns and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=10, help="turns of each implementation (default: 10)")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of a turn (default: 1.5)")
    parser.add_argument(
        "--settings", type=int, nargs="*", default=range(len(SETTINGS)), help="which rows (default: all)"
    )
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker[0], SETTINGS[int(arguments.worker[1])])
        return
    print(f"{'layers width heads length batch vocabulary':44} {'ours':>9} {'eager':>9} {'compiled':>9}  pytorch / ours")
    for index in arguments.settings:
        print(row(index, arguments.turns, arguments.seconds), flush=True)


def row(index: int, turns: int, seconds: float) -> str:
    """Measures one setting."""
    workers = {name: Worker(name, index) for name in IMPLEMENTATIONS}
    medians = {name: [] for name in IMPLEMENTATIONS}
    for _ in range(turns):
        for name, worker in workers.items():
            medians[name].append(statistics.median(worker.ask(seconds)))
    rates = {name: worker.ask("matrix products") for name, worker in workers.items() if name != "pytorch compiled"}
    for worker in workers.values():
        worker.close()
    times = {name: statistics.median(values) for name, values in medians.items()}
    best = min(IMPLEMENTATIONS[1:], key=times.get)
    logs = np.log(medians[best]) - np.log(medians["ours"])
    error = 1.96 * logs.std(ddof=1) / np.sqrt(turns)
    ratio = times[best] / times["ours"]
    achieved = flops(SETTINGS[index]) / times["ours"]
    square, ours_alone, pytorch_alone = rates["ours"]["square"], *(rate["layer"] for rate in rates.values())
    sizes = " ".join(f"{value:>6}" for value in dataclasses.astuple(SETTINGS[index]))
    milliseconds = " ".join(f"{1e3 * times[name]:7.1f}ms" for name in IMPLEMENTATIONS)
    return (
        f"{sizes:44} {milliseconds}  {ratio:.2f} (95%: {ratio * np.exp(-error):.2f} to {ratio * np.exp(error):.2f})  "
        f"{achieved / 1e9:.0f} of {square / 1e9:.0f} GFLOP/s = {achieved / square:.0%}; one product: ours "
        f"{ours_alone / 1e9:.0f}, PyTorch {pytorch_alone / 1e9:.0f}"
    )


class Worker:
    """One implementation in its own process."""

    def __init__(self, name: str, index: int):
        command = [sys.executable, "-m", "benchmarks.train_step", "--worker", name, str(index)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ask("ready")

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate(json.dumps("close") + "\n")

    def ask(self, question: object) -> object:
        """Its answer: times of the steps that fit in the given seconds, or the rates of matrix products."""
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("a worker ended early: see its message above")
        return json.loads(answer)


def work(name: str, setting: Setting) -> None:
    """Answers questions on standard input until told to close."""
    make = {
        "ours": our_step,
        "pytorch eager": lambda setting: pytorch_step(setting, compiled=False),
        "pytorch compiled": lambda setting: pytorch_step(setting, compiled=True),
    }
    step = make[name](setting)
    for _ in range(3):
        step()
    for line in sys.stdin:
        question = json.loads(line)
        if question == "close":
            return
        if question == "ready":
            answer = True
        elif question == "matrix products":
            tokens, width = setting.batch * setting.length, setting.width
            rate = our_product_rate if name == "ours" else pytorch_product_rate
            answer = {"square": rate(2048, 2048, 2048), "layer": rate(tokens, width, 4 * width)}
        else:
            answer = timed(step, question)
        print(json.dumps(answer), flush=True)


def timed(step: Callable[[], float], seconds: float) -> list[float]:
    """Times of at least two steps, without the first after a pause."""
    step()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return times


def random_tokens(setting: Setting) -> np.ndarray:
    """Token ids, [batch, length + 1]."""
    return np.random.default_rng(0).integers(0, setting.vocab_size, (setting.batch, setting.length + 1))


def our_step(setting: Setting) -> Callable[[], float]:
    """The training step of this library, as `experiments.pretrain` runs it."""
    import jax

    from lm.models.decoder_lm import DecoderLM
    from lm.modules.config import ModelConfig
    from lm.objectives.causal_lm import CausalLM
    from lm.runs.config import OptimizerConfig, PartitioningConfig
    from lm.runs.host_memory import keep_freed_memory
    from lm.training.optimizers import make_optimizer
    from lm.training.partitioning import make_partitioner
    from lm.training.step import init_state, make_train_step

    model = ModelConfig(
        vocab_size=setting.vocab_size,
        layers=setting.layers,
        width=setting.width,
        heads=setting.heads,
        max_length=setting.length,
    )
    config = OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup_steps=0, b2=0.99)
    keep_freed_memory()
    partitioner = make_partitioner(PartitioningConfig())
    task = CausalLM(DecoderLM(model, partitioner.mesh), one_segment=True)
    optimizer = make_optimizer(config, steps=1_000_000)
    state = partitioner.compile_init(lambda key: init_state(task, optimizer, config, key))(jax.random.key(0))
    train_step = partitioner.compile_train_step(make_train_step(task, optimizer, config, seed=0))
    tokens = random_tokens(setting).astype(np.int32)
    shape = (setting.batch, setting.length)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": np.ones(shape, np.float32),
        "positions": np.tile(np.arange(setting.length, dtype=np.int32), (setting.batch, 1)),
        "segments": np.ones(shape, np.int32),
    }

    def step() -> float:
        nonlocal state
        state, sums = train_step(state, partitioner.place_batch(batch))
        loss = float(sums["loss"])
        jax.block_until_ready(state)
        return loss

    return step


def pytorch_step(setting: Setting, *, compiled: bool) -> Callable[[], float]:
    """The training step in PyTorch."""
    import torch

    from benchmarks.pytorch_gpt2 import PyTorchStep
    from lm.runs.host_memory import keep_freed_memory

    keep_freed_memory()  # PyTorch benefits from this too
    step = PyTorchStep(
        setting.layers, setting.width, setting.heads, setting.length, setting.vocab_size, compiled=compiled
    )
    tokens = torch.from_numpy(random_tokens(setting))
    return lambda: step(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def our_product_rate(rows: int, inner: int, columns: int) -> float:
    """FLOP/s of a float32 matrix product in JAX."""
    import jax
    import jax.numpy as jnp

    left, right = jnp.ones((rows, inner)), jnp.ones((inner, columns))
    product = jax.jit(jnp.matmul)
    return product_rate(lambda: product(left, right).block_until_ready(), rows, inner, columns)


def pytorch_product_rate(rows: int, inner: int, columns: int) -> float:
    """FLOP/s of a float32 matrix product in PyTorch."""
    import torch

    left, right = torch.ones(rows, inner), torch.ones(inner, columns)
    return product_rate(lambda: torch.mm(left, right), rows, inner, columns)


def product_rate(product: Callable[[], object], rows: int, inner: int, columns: int, seconds: float = 1.0) -> float:
    """FLOP/s of the median call."""
    return 2 * rows * inner * columns / statistics.median(timed(product, seconds))


def flops(setting: Setting) -> float:
    """Model FLOPs of a step."""
    from lm.models.accounting import training_flops_per_token
    from lm.modules.config import ModelConfig

    model = ModelConfig(vocab_size=setting.vocab_size, layers=setting.layers, width=setting.width, heads=setting.heads)
    return setting.batch * setting.length * training_flops_per_token(model, setting.length)


if __name__ == "__main__":
    main()
