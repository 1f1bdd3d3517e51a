"""A real PostgreSQL server on the loopback interface, in a temporary folder, for tests."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PASSWORD = "correct-horse-battery"
_HOW = "apt-get install postgresql, and pip install -e '.[test]'"


def programs() -> Path | None:
    """The folder of initdb and postgres; distributions keep it off the PATH."""
    found = [Path(file).resolve() for file in (shutil.which("initdb"),) if file]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: int(file.parts[-3]))
    return found[-1].parent if found else None


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Starts a server and gives the URL of its databases, without the password; stops it at the end."""
    bin_ = programs()
    if bin_ is None:
        pytest.skip(f"no PostgreSQL server is installed: {_HOW}")
    psycopg = pytest.importorskip("psycopg", reason=f"no driver of PostgreSQL: {_HOW}")
    with tempfile.TemporaryDirectory(prefix="postgresql-") as name, contextlib.ExitStack() as stack:
        folder, port, who = Path(name), free_port(), _unprivileged(Path(name))
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        data, log = folder / "data", stack.enter_context((folder / "log").open("w"))
        how = ("--username=tester", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync")
        made = subprocess.run([bin_ / "initdb", f"--pgdata={data}", *how], stdout=log, stderr=log, cwd=folder, **who)
        assert made.returncode == 0, (folder / "log").read_text()
        options = ("-F", "-k", folder, "-p", str(port), "-c", "listen_addresses=127.0.0.1")
        process = subprocess.Popen([bin_ / "postgres", "-D", data, *options], stdout=log, stderr=log, cwd=folder, **who)
        try:
            _wait_until_ready(process, psycopg, port, folder / "log")
            yield f"postgresql://tester@127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)  # ends it without waiting for clients
            process.wait(timeout=60)


def execute(url: str, statement: str) -> None:
    """Runs a statement outside of a transaction."""
    import psycopg

    with psycopg.connect(url, password=PASSWORD, autocommit=True) as connection:
        connection.execute(statement)


def _unprivileged(folder: Path) -> dict:
    """Arguments of a subprocess that owns the folder: the server refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    names = {user.pw_name: user for user in pwd.getpwall()}
    user = names.get("postgres") or names["nobody"]
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _wait_until_ready(process: subprocess.Popen, psycopg, port: int, log: Path) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(f"postgresql://tester@127.0.0.1:{port}/postgres", password=PASSWORD).close()
            return
        except psycopg.OperationalError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
