"""Every test runs on eight virtual CPU devices, and implicit rank promotion is an error.

Fine-tuning runs at toy size are here too, each made once, through the command line.
"""

import contextlib
import faulthandler
import gc
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

# Nearly all the time of the tests is compiling; the fast code that full optimization makes would not earn it back.
_flags = " --xla_force_host_platform_device_count=8"
_flags += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if version("jaxlib") < "0.11":  # later versions exit at a flag that they don't know
    _flags += " --xla_cpu_use_fusion_emitters=false"  # slower to compile than what they replace
    _flags += " --xla_cpu_parallel_codegen_split_count=1"  # tiny programs are not worth splitting among threads
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + _flags
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA has a thread for each core, and a reduction over eight devices blocks eight: with fewer, two that run at once wait
# for each other's threads until XLA aborts the process.
os.environ.setdefault("NPROC", "32")
sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests.tiny, experiments and configs

# Many tests train the same tiny model in a new object; compiling it once is most of what they cost. The processes that
# tests run in, and those that tests start, share what they compile.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="jax-cache-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Traces and compiled programs are millions of objects that stay; looking through all of them seldom finds garbage.
gc.set_threshold(20_000, 20, 50)


_SECONDS_A_TEST_MAY_TAKE = 400.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Ends the process if a test hangs, with the traceback of each thread, so that the suite always ends."""
    faulthandler.dump_traceback_later(_SECONDS_A_TEST_MAY_TAKE, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def rows_folder(tmp_path_factory) -> Path:
    """A folder with the rows of every kind."""
    from tests.tiny_tasks import write_all

    folder = tmp_path_factory.mktemp("tasks")
    write_all(folder)
    return folder


@pytest.fixture
def here(rows_folder, monkeypatch) -> Path:
    """The folder with the rows is the current one."""
    monkeypatch.chdir(rows_folder)
    return rows_folder


@pytest.fixture(scope="session")
def finetuned(rows_folder) -> Callable[..., Path]:
    """The work directory of a finished run of a kind, relative to the folder with the rows."""
    from experiments import finetune  # takes seconds, and most tests need none
    from tests.tiny import command_line
    from tests.tiny_tasks import CONFIG

    made: dict[tuple[str, ...], Path] = {}

    def run(kind: str, *flags: str) -> Path:
        if (kind, *flags) not in made:
            workdir = Path("runs") / f"{kind}_{len(made)}"
            with contextlib.chdir(rows_folder):
                status = command_line(
                    finetune.main, finetune.define_flags, f"{CONFIG}:{kind}", f"--workdir={workdir}", *flags
                )
            assert status == 0
            made[kind, *flags] = workdir
        return made[kind, *flags]

    return run


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a running server, without a database."""
    from tests.postgresql import server

    with server() as url:
        yield url


@pytest.fixture
def database_url(postgresql_server, monkeypatch) -> str:
    """The URL of a new database, whose password the environment has."""
    from tests.postgresql import PASSWORD, execute

    name = f"test_{uuid.uuid4().hex}"
    execute(f"{postgresql_server}/postgres", f"CREATE DATABASE {name}")
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    return f"{postgresql_server}/{name}"


def pytest_addoption(parser, pluginmanager):
    """Lets `-p no:xdist` run everything in one process, although pyproject.toml asks for two."""
    if not pluginmanager.hasplugin("xdist"):
        group = parser.getgroup("without xdist")
        group._addoption("-n", help="no effect without xdist")  # pytest keeps short options to itself
        for option in ("--dist", "--max-worker-restart"):
            group.addoption(option, help="no effect without xdist")
