"""When a run was started and resumed, and with which version of the code: one line of JSON each time."""

import datetime
import json
import platform
import subprocess
from pathlib import Path

import jax

import lm


def record_start(path: Path, step: int) -> None:
    """Adds a line for a start at a step.

    Raises:
      OSError: if the file cannot be written.
    """
    line = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "step": step,
        "version": lm.__version__,
        "commit": commit(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def commit(folder: Path = Path(lm.__file__).parents[1]) -> str | None:
    """The Git commit of the code, with `-dirty` after it if files differ from it; None if it is not a checkout."""
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
