"""A study in a PostgreSQL database, which workers on any number of machines share.

A lock of the server is held while a worker takes a trial. No kernel knows whether a process on another machine is
alive: a live worker repeats a heartbeat (Optuna's), and a trial whose heartbeat stopped is taken over after a grace
period. Only the server's clock counts.
"""

import contextlib
import os
import platform
import secrets
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from lm.errors import UserError
from lm.files import json_value
from lm.locks import HEARTBEAT_SECONDS, STALE_SECONDS

# Later than the lock of a run on a shared file system, so that whoever takes over a trial may also continue its run.
GRACE_SECONDS = STALE_SECONDS + 2 * HEARTBEAT_SECONDS
_CONNECT_SECONDS = 10
_SILENT_SECONDS = 60  # until a connection counts as lost
_LOCK_SECONDS = 120  # until the server takes the lock from a worker whose machine vanished
_SCHEMES = ("postgresql", "postgresql+psycopg")

# Optuna's heartbeat is experimental and meant for its own loop.
warnings.filterwarnings("ignore", "Argument ``heartbeat_interval`` is an experimental feature")
warnings.filterwarnings("ignore", "Heartbeat of storage is supposed to be used with Study.optimize")


def read_url(text: str) -> sqlalchemy.URL:
    """The address of a database, for the driver that the extra `postgresql` installs.

    Raises:
      UserError: if it is not one, or has a password, which would be stored with the config. It is never in the message.
    """
    try:
        url = sqlalchemy.make_url(text)
    except (ArgumentError, ValueError):
        raise UserError("config.storage must be a URL such as postgresql://USER@HOST/DATABASE") from None
    if url.password is not None or any("password" in key for key in url.query):
        raise UserError(
            "config.storage must not have a password, which would be stored with the config: "
            "set the variable PGPASSWORD, or write it into ~/.pgpass"
        )
    if url.drivername not in _SCHEMES:
        raise UserError(f"config.storage must begin with postgresql://, got {url.drivername}://")
    return url.set(drivername="postgresql+psycopg")


class Database:
    """One study of a PostgreSQL database; see `lm.sweeps.study.Home`."""

    def __init__(
        self, url: str, name: str, grace_seconds: int = GRACE_SECONDS, heartbeat_seconds: int = HEARTBEAT_SECONDS
    ):
        """Connects, and creates Optuna's tables if they are missing.

        Args:
          url: of the database, without a password.
          name: of the study.
          grace_seconds: since its last heartbeat, after which a trial is taken over.
          heartbeat_seconds: between heartbeats.

        Raises:
          UserError: if the driver is missing, the server cannot be reached or refuses, or the tables are those of
            another version of Optuna.
        """
        self._url, self._name = url, name
        how = {"poolclass": sqlalchemy.NullPool, "connect_args": _connection(read_url(url))}
        with self.plain_errors():
            try:
                self._engine = sqlalchemy.create_engine(read_url(url), **how)
            except ImportError as error:
                raise UserError(
                    f"config.storage needs the driver of PostgreSQL ({error}): pip install -e '.[postgresql]'"
                ) from error
            with self._lock("tables"):
                self.storage = self._open(how, heartbeat_seconds, grace_seconds)

    def _open(self, how: dict[str, Any], heartbeat_seconds: int, grace_seconds: int) -> RDBStorage:
        try:
            return RDBStorage(
                read_url(self._url).render_as_string(),
                how,
                heartbeat_interval=heartbeat_seconds,
                grace_period=grace_seconds,
            )
        except RuntimeError as error:  # also of Optuna's own errors about SQL, which `plain_errors` knows
            if isinstance(error, StorageInternalError):
                raise
            raise UserError(f"config.storage={self._url}: {' '.join(str(error).split())}") from error

    @contextlib.contextmanager
    def plain_errors(self) -> Iterator[None]:
        """A context in which what the server or the network does wrong is one line.

        Raises:
          UserError: instead of errors of SQL.
        """
        try:
            yield
        except (SQLAlchemyError, StorageInternalError) as error:
            cause = error.__cause__ if isinstance(error, StorageInternalError) else error
            said = " ".join(str(getattr(cause, "orig", None) or cause).split())  # without statement and values
            raise UserError(
                f"config.storage={self._url}: {said}: check the server, user and password (PGPASSWORD or ~/.pgpass), "
                "then run the same command to continue"
            ) from error

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Held while a worker takes a trial. The server releases it when its holder dies."""
        return self._lock(f"study {self._name}")

    @contextlib.contextmanager
    def _lock(self, what: str) -> Iterator[None]:
        with self._engine.begin() as connection:
            limit = f"SET LOCAL idle_in_transaction_session_timeout = '{_LOCK_SECONDS}s'"
            connection.execute(sqlalchemy.text(limit))
            acquire = "SELECT pg_advisory_xact_lock(hashtextextended(:what, 0))"
            connection.execute(sqlalchemy.text(acquire), {"what": f"calibrated-lm {what}"})
            yield

    def settings(self, asked: dict[str, Any], minimize: bool, create: bool) -> dict[str, Any]:
        """The settings of the sweep that began the study.

        Args:
          asked: what they become if there is no study yet.
          minimize: the direction of such a study.
          create: whether to create it.

        Raises:
          UserError: if there is no study and none is to be created, or another program made it.
        """
        with self.lock():
            names = {study.study_name for study in self.storage.get_all_studies()}
            if self._name not in names:
                if not create:
                    raise UserError(f"config.storage={self._url} holds no study {self._name!r}: check config.study")
                direction = optuna.study.StudyDirection.MINIMIZE if minimize else optuna.study.StudyDirection.MAXIMIZE
                self.storage.create_new_study([direction], self._name)
            study = self._id
            known = self.storage.get_study_user_attrs(study)
            if "sweep" in known:
                return known["sweep"]
            if self.storage.get_n_trials(study):
                raise UserError(
                    f"config.storage={self._url} holds a study {self._name!r} of another program: "
                    "use another config.study"
                )
            self.storage.set_study_user_attr(study, "sweep", json_value(asked))
            return asked

    def open(self, **how: Any) -> optuna.Study:
        """The study."""
        return optuna.create_study(storage=self.storage, study_name=self._name, load_if_exists=True, **how)

    @property
    def _id(self) -> int:
        return self.storage.get_study_id_from_name(self._name)

    def hold(self, number: int) -> "Heartbeat":
        """Makes a running trial that of this process."""
        return Heartbeat(self.storage, self.storage.get_trial_id_from_study_id_trial_number(self._id, number))

    def abandoned(self, running: Sequence[FrozenTrial]) -> Iterator[tuple[int, "Heartbeat"]]:
        """Those of the running trials that no live worker holds, each held by this process from then on.

        `optuna.storages.fail_stale_trials` finds the same, but starts them again with other numbers.
        """
        stale = {self.storage.get_trial_number_from_id(one) for one in self.storage._get_stale_trial_ids(self._id)}
        for trial in running:
            # Without a worker, it was given back, or its worker died before the first heartbeat.
            if trial.number in stale or not trial.user_attrs.get("worker"):
                with contextlib.suppress(UpdateFinishedTrialError):  # it ended in the meantime
                    hold = self.hold(trial.number)
                    yield trial.number, hold


class Heartbeat:
    """Shows other workers that this process works on a trial."""

    def __init__(self, storage: RDBStorage, trial: int):
        """Begins.

        Args:
          storage: of the trial.
          trial: its id in the storage.
        """
        self._storage, self._trial, self._ended = storage, trial, threading.Event()
        self._worker = f"{platform.node()}:{os.getpid()}:{secrets.token_hex(4)}"
        storage.record_heartbeat(trial)
        storage.set_trial_user_attr(trial, "worker", self._worker)
        threading.Thread(target=self._beat, daemon=True).start()

    def release(self) -> None:
        """Ends, and gives the trial back if it is unfinished and still that of this process."""
        self._ended.set()
        # If the server is gone, the heartbeat ends all the same.
        with contextlib.suppress(UpdateFinishedTrialError, SQLAlchemyError, StorageInternalError):
            if self._storage.get_trial(self._trial).user_attrs.get("worker") == self._worker:
                self._storage.set_trial_user_attr(self._trial, "worker", "")

    def _beat(self) -> None:
        while not self._ended.wait(self._storage.get_heartbeat_interval()):
            # The server may be back before the grace period ends.
            with contextlib.suppress(SQLAlchemyError, StorageInternalError):
                self._storage.record_heartbeat(self._trial)


def _connection(url: sqlalchemy.URL) -> dict[str, Any]:
    """libpq's settings of a connection."""
    options = url.query.get("options", "")
    return {
        "connect_timeout": _CONNECT_SECONDS,
        "keepalives_idle": _SILENT_SECONDS // 2,
        "tcp_user_timeout": 1000 * _SILENT_SECONDS,
        # Optuna compares times without their zone.
        "options": f"{options if isinstance(options, str) else ' '.join(options)} -c TimeZone=UTC",
    }
