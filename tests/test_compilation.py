"""Compiled programs are kept between processes, in the place that is documented."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp
from lm.compilation import keep_compiled_programs
print(keep_compiled_programs())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3))).block_until_ready()
"""


NAMELESS = """
import pwd
def getpwuid(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
"""


def run(program=PROGRAM, **environment) -> str:
    outer = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**outer, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_programs_are_kept_below_the_cache_directory(tmp_path):
    folder = run(LM_CACHE_DIR=str(tmp_path))
    kept = {path for path in tmp_path.rglob("*-cache") if path.is_file()}
    assert kept
    assert all(str(path).startswith(folder) for path in kept)
    assert run(LM_CACHE_DIR=str(tmp_path)) == folder
    assert set(tmp_path.rglob("*-cache")) == kept, "the second process compiled again"


@pytest.mark.slow
def test_a_user_without_a_name_has_a_cache_too(tmp_path):
    run(LM_CACHE_DIR=str(tmp_path))
    kept = set(tmp_path.rglob("*-cache"))
    run(NAMELESS + PROGRAM.replace("sin", "cos"), LM_CACHE_DIR=str(tmp_path))
    assert set(tmp_path.rglob("*-cache")) > kept


@pytest.mark.slow
def test_what_the_user_set_stays(tmp_path):
    theirs = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "theirs"), "LM_CACHE_DIR": str(tmp_path / "ours")}
    assert run(**theirs) == "None"
    assert run(JAX_ENABLE_COMPILATION_CACHE="false", LM_CACHE_DIR=str(tmp_path / "ours")) == "None"
    assert not (tmp_path / "ours").exists()


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    assert run(LM_CACHE_DIR=str(tmp_path / "file")) == "None"
