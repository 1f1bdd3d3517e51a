"""A sweep whose runs are a formula; run as a program, a worker on one, which imports as little as it can.

python -m tests.sweeps.toy_study DIRECTORY SEARCH SECONDS [URL]
"""

import math
import sys
import time
from pathlib import Path

from lm.sweeps.search_space import Parameter
from lm.sweeps.study import Home, Repetition, Search, Study, Trial, work

ONCE = [Repetition(0)]
RATE, LAYERS = Parameter("rate", low=1e-4, high=1.0, log=True), Parameter("layers", (1, 2, 4))
BAYES = Search((RATE, LAYERS), "bayes", 14, "loss", minimize=True)
GRID = Search((Parameter("a", (1, 2, 3)), Parameter("b", ("x", "y"))), "grid", 0, "loss", minimize=True)


def loss(values: dict) -> float:
    if "rate" in values:
        return (math.log10(values["rate"]) + 2) ** 2 + values["layers"] / 10
    return values["a"] + (values["b"] == "y") / 2


def train(trial: Trial, repetition: Repetition, _) -> dict[str, float]:
    return {"loss": loss(trial.values) + repetition.seed}


def quiet(_: str) -> None:
    pass


def begun(directory: Path) -> list[int]:
    """The trials that workers began, one as often as it was begun."""
    file = directory / "begun"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def database(url: str) -> Home:
    """A study in a database, where a dead worker's trial is taken over after two seconds."""
    from lm.sweeps.database import Database

    return Database(url, "sweep", grace_seconds=2, heartbeat_seconds=1)


def main(directory: Path, search: Search, seconds: float, *url: str) -> None:
    def slow(trial: Trial, repetition: Repetition, watch) -> dict[str, float]:
        with (directory / "begun").open("a") as file:
            file.write(f"{trial.number}\n")
        time.sleep(seconds)
        return train(trial, repetition, watch)

    work(Study(directory, search, *map(database, url)), ONCE, slow, quiet)


if __name__ == "__main__":
    main(Path(sys.argv[1]), {"bayes": BAYES, "grid": GRID}[sys.argv[2]], float(sys.argv[3]), *sys.argv[4:])
