"""Several real processes on this machine that do one job together, as hosts do."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.tiny import tiny_config

ROOT = Path(__file__).parents[1]
_QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# Times that a test can wait for.
_RUN = "import lm.hosts, runpy, sys; lm.hosts.JOIN_SECONDS = {join}; lm.hosts.HEARTBEAT_SECONDS = 10; "
_RUN += "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
_CONFIG = """
from pathlib import Path
from lm.configuration import to_config_dict
from tests.tiny import replace, tiny_config

def get_config():
    config = tiny_config(Path({folder!r}), steps={steps}, evaluate_every=6, checkpoint_every=4, log_every=1)
    small = {{"layers": 1, "dropout": 0.0}}
    products = {{"predictions": {{"tokens": 40}}, "optimizer": {{"ema_decay": 0.0}}}}
    return to_config_dict(replace(config, model=small, partitioning={{"data": -1}}, **products))
"""


class Ended(NamedTuple):
    """How a process ended, and when, in seconds since `Together.wait` was called."""

    status: int
    out: str
    errors: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """The error lines."""
        return [line for line in self.errors.splitlines() if line.startswith("error: ")]


class Together:
    """Processes that were started together."""

    def __init__(self, processes: list[subprocess.Popen], folder: Path):
        self.processes, self._folder = processes, folder

    def wait(self, seconds: float = 300) -> list[Ended]:
        """Waits until all have ended."""
        began, ended = time.monotonic(), {}
        while len(ended) < len(self.processes):
            assert time.monotonic() < began + seconds, f"only {sorted(ended)} have ended: {self.read(0)[1]}"
            for number, process in enumerate(self.processes):
                if number not in ended and process.poll() is not None:
                    ended[number] = time.monotonic() - began
            time.sleep(0.05)
        return [
            Ended(process.returncode, *self.read(number), ended[number])
            for number, process in enumerate(self.processes)
        ]

    def read(self, number: int) -> tuple[str, str]:
        """What a process has printed so far, to standard output and to standard error."""
        return (self._folder / f"{number}.out").read_text(), (self._folder / f"{number}.err").read_text()

    def until(self, happened: Callable[[], bool], seconds: float = 200) -> None:
        """Waits until something has happened while all processes run."""
        began = time.monotonic()
        while not happened():
            assert time.monotonic() < began + seconds, self.read(0)[1]
            assert all(process.poll() is None for process in self.processes), self.read(0)[1]
            time.sleep(0.05)


@contextlib.contextmanager
def together(
    folder: Path,
    count: int,
    job: str,
    *arguments: str,
    own: Callable[[int], Sequence[str]] = lambda number: (),
    before: Callable[[int], None] = lambda number: None,
    join: int = 100,
    cwd: Path = ROOT,
) -> Iterator[Together]:
    """Starts processes, and kills at the end what is left of them.

    Args:
      folder: for what they print.
      count: of processes; 1: alone, without --distributed.
      job: a module.
      arguments: of all processes.
      own: further arguments of each.
      before: is called in each process before its program starts.
      join: seconds to wait for each other.
      cwd: their current folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"XLA_FLAGS": _QUICK_TO_COMPILE, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    shared = ["--distributed", f"--coordinator=127.0.0.1:{free_port()}", f"--processes={count}"] if count > 1 else []
    processes: list[subprocess.Popen] = []
    try:
        for number in range(count):
            place = [*shared, f"--process_id={number}"] if shared else []
            with (folder / f"{number}.out").open("w") as out, (folder / f"{number}.err").open("w") as errors:
                command = [sys.executable, "-c", _RUN.format(join=join), job, *arguments, *place, *own(number)]
                processes.append(
                    subprocess.Popen(
                        command,
                        cwd=cwd,
                        env=environment,
                        stdout=out,
                        stderr=errors,
                        preexec_fn=lambda number=number: before(number),
                    )
                )
        yield Together(processes, folder)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def write_config(folder: Path, steps: int) -> str:
    """Writes a config file for tiny runs on one text, and returns its flag."""
    tiny_config(folder)  # writes the text
    path = folder / "config.py"
    path.write_text(_CONFIG.format(folder=str(folder), steps=steps))
    return f"--config={path}"
