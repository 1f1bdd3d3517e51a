"""Times the data loader against the training step that it feeds.

python -m benchmarks.data_loader

For each setting of `benchmarks.train_step`: tokens per second that one loader thread delivers, tokens per second that
the training step takes, and the ratio of the two.
"""

import itertools
import statistics
import time

import numpy as np

from benchmarks.train_step import SETTINGS, Setting, our_step, timed
from lm.data.store import TokenStore
from lm.data.windows import TrainBatches, prefetch


def main() -> None:
    """Prints a line per setting."""
    print(f"{'length batch':>14} {'loader tokens/s':>17} {'step tokens/s':>15} {'ratio':>7}")
    for setting in SETTINGS:
        tokens = setting.batch * setting.length
        step_rate = tokens / statistics.median(timed(our_step(setting), seconds=3))
        loader_rate = statistics.median(loader_rates(setting))
        ratio = loader_rate / step_rate
        print(
            f"{setting.length:>8} {setting.batch:>5} {loader_rate:>17,.0f} {step_rate:>15,.0f} {ratio:>7.0f}",
            flush=True,
        )


def loader_rates(setting: Setting, turns: int = 7, batches_per_turn: int = 2000) -> list[float]:
    """Tokens per second of `prefetch` with one thread, over a corpus of ten million random tokens."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, setting.vocab_size, 10_000_000).astype(np.uint16)
    starts = np.unique(np.concatenate([[0], random.integers(0, len(tokens), 10_000)]))
    store = TokenStore(tokens, starts, num_bytes=len(tokens), end_of_text=0)
    batches = TrainBatches(store, setting.length, setting.batch, seed=0, random_offsets=True)
    stream = prefetch(batches, threads=1)
    next(stream)
    rates = []
    for _ in range(turns):
        began = time.perf_counter()
        for _ in itertools.islice(stream, batches_per_turn):
            pass
        rates.append(batches_per_turn * setting.batch * setting.length / (time.perf_counter() - began))
    return rates


if __name__ == "__main__":
    main()
