"""What a run was trained on, in its data.json: a fingerprint of each split, and who named the data.

A run resumes only on the data that it began with. And since a config may name any file, a run that came from someone
else must not be able to make its reader's machine read or write: the signature shows that this user trained the run, or
resumed it, with these settings. Its key never leaves the cache directory.
"""

import dataclasses
import hashlib
import hmac
import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.data.rows import Row
from lm.data.store import TrainingText
from lm.errors import UserError
from lm.files import cache_directory, read_json, write_json, written_atomically
from lm.runs.config import PretrainConfig, RunConfig
from lm.runs.prompted_run import PromptedRunConfig
from lm.runs.work_directory import WorkDirectory

AnyRun = RunConfig | PromptedRunConfig

_KEY_BYTES = 32
# Splits that training never sees; results on them may be renewed.
_ONLY_MEASURED = ("test",)


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """The content of a split.

    Attributes:
      unit: what is counted: "rows" or "documents".
      count: how many.
      digest: of all of them in order, wherever they are stored.
    """

    unit: str
    count: int
    digest: str

    @property
    def size(self) -> str:
        """Such as "24 rows"."""
        return f"{self.count:,} {self.unit if self.count != 1 else self.unit.removesuffix('s')}"

    @classmethod
    def of_rows(cls, rows: Sequence[Row]) -> "Fingerprint":
        """Of labelled rows, whatever their places."""
        digest = hashlib.blake2b(digest_size=16)
        for row in rows:
            content = {name: value for name, value in row.items() if name != "place"}
            digest.update(json.dumps(content, sort_keys=True).encode() + b"\n")
        return cls("rows", len(rows), digest.hexdigest())

    @classmethod
    def of_text(cls, text: TrainingText) -> "Fingerprint":
        """Of text as tokens."""
        return cls("documents", text.num_documents, text.content_digest())


Fingerprints = Mapping[str, Fingerprint]


def readable(found: Fingerprints) -> dict[str, str]:
    """The fingerprints as text by the names of the splits, to compare hosts."""
    return {f"the {split} data": f"{each.size} ({each.digest[:8]})" for split, each in found.items()}


def check_data(
    directory: WorkDirectory,
    found: Fingerprints,
    classes: Sequence[str] = (),
    compared_with: WorkDirectory | None = None,
) -> list[str]:
    """Checks, without writing anything, that a run may go on with this data.

    Args:
      directory: of the run, perhaps a new one.
      found: the data of each split as it is now.
      classes: names of the classes as they are now.
      compared_with: another run that a new one must share its data with, since their results will be compared.

    Returns:
      Lines to print.

    Raises:
      UserError: if the run, or the one that it is compared with, was trained on other data.
    """
    if not directory.config.exists() and not directory.prompt.exists():
        if compared_with is not None:
            _check_comparable(compared_with, found)
        return []
    known = directory.load_classes()
    if directory.classes.exists() and known != tuple(classes):
        raise _other_data(directory, f"the classes were {', '.join(known)}, and now are {', '.join(classes)}")
    recorded = recorded_data(directory)
    if not recorded:
        return [f"{directory.path} does not say on what data it began: the data of today is recorded there now"]
    changed = changes(recorded, found)
    if trained := _changes_in_training(changed):
        raise _other_data(directory, "; ".join(trained))
    return [f"{change}: the results on it are renewed" for change in changed.values()]


def changes(recorded: Fingerprints, found: Fingerprints, splits: Collection[str] | None = None) -> dict[str, str]:
    """For each split that changed, or each of some splits, a text that says so."""
    texts = {}
    for split in splits if splits is not None else {**recorded, **found}:
        before, now = recorded.get(split), found.get(split)
        if before == now:
            continue
        counts = [each.size if each else "none" for each in (before, now)]
        if counts[0] != counts[1]:
            what = f"from {counts[0]} to {counts[1]}"
        else:
            other = (
                "other content" if before and before.unit == "rows" else "other content or of another tokenizer.json"
            )
            what = f"({counts[0]}, of {other})"
        texts[split] = f"the {split} data changed {what}"
    return texts


def _check_comparable(other: WorkDirectory, found: Fingerprints) -> None:
    recorded = recorded_data(other)
    if recorded and (changed := _changes_in_training(changes(recorded, found))):
        raise UserError(
            f"since {other.path} was trained, {'; '.join(changed)}, so results would not be comparable: put the former "
            "data back, or use another --workdir"
        )


def _changes_in_training(changed: Mapping[str, str]) -> list[str]:
    return [change for split, change in changed.items() if split not in _ONLY_MEASURED]


def _other_data(directory: WorkDirectory, how: str) -> UserError:
    trained = f", where config.init_from={directory.path} would begin with this run's parameters"
    return UserError(
        f"{directory.path} holds a run on other data: since it began, {how}. Put the former data back, or use another "
        f"--workdir{trained if directory.config.exists() else ''}"
    )


def recorded_data(directory: WorkDirectory) -> Fingerprints:
    """The fingerprints in a run; empty if it has none.

    Raises:
      UserError: if its data.json is damaged.
    """
    try:
        return {name: Fingerprint(**values) for name, values in _read(directory).get("splits", {}).items()}
    except (TypeError, AttributeError) as error:
        raise _damaged(directory) from error


def write_data_record(directory: WorkDirectory, config: AnyRun, found: Fingerprints) -> None:
    """Writes data.json, for a run whose data the user named on the command line or in a config file."""
    splits = {name: dataclasses.asdict(each) for name, each in found.items()}
    record = {"splits": splits, "signature": _signature(config)}
    if not directory.data.exists() or read_json(directory.data) != record:
        write_json(directory.data, record)


def check_own(directory: WorkDirectory, config: AnyRun, reads: Sequence[str], instead: str) -> None:
    """Checks that this user named the data of a run, before it is read.

    Args:
      directory: of the run.
      config: of the run.
      reads: fields of `config.data` whose sources would be read.
      instead: how to allow it.

    Raises:
      UserError: if the run may come from someone else.
    """
    if is_own(directory, config):
        return
    sources = [source for name in reads if (source := getattr(config.data, name))]
    writes = ""
    if isinstance(config, PretrainConfig):
        writes = f" and write to {config.data.cache_dir or cache_directory()}"
    if directory.data.exists():
        why = "was not trained by you on this machine"
    else:
        why = f"has no {directory.data.name} to show that you trained it on this machine (earlier versions wrote none)"
    raise UserError(
        f"{directory.path} {why}, and its config.json makes this command read "
        f"{', '.join(sources)}{writes}: if you want that, {instead}"
    )


def check_inside(directory: WorkDirectory, config: AnyRun, folder: Path, instead: str = "") -> None:
    """Checks that no link would lead what is written to a folder out of a run that may come from someone else.

    Args:
      directory: of the run.
      config: of the run.
      folder: in the directory.
      instead: another way out, for the message.

    Raises:
      UserError: if one would.
    """
    target = folder.resolve()
    if not target.is_relative_to(directory.path.resolve()) and not is_own(directory, config):
        raise UserError(f"{folder} leads to {target}: remove the link{instead}")


def is_own(directory: WorkDirectory, config: AnyRun) -> bool:
    """Whether this user trained the run, or resumed it, with this data on this machine."""
    signature, expected = _read(directory).get("signature"), _signature(config)
    return isinstance(signature, str) and expected is not None and hmac.compare_digest(signature, expected)


def _read(directory: WorkDirectory) -> dict[str, Any]:
    if not directory.data.exists():
        return {}
    record = read_json(directory.data)
    if not isinstance(record, dict):
        raise _damaged(directory)
    return record


def _damaged(directory: WorkDirectory) -> UserError:
    return UserError(f"{directory.data} is damaged: delete it if you know that the data is the run's own")


def _signature(config: AnyRun) -> str | None:
    """A proof that the owner of the key named this data; None where no key can be kept."""
    key = _key(cache_directory() / "signing_key")
    if key is None:
        return None
    reads = [type(config).__name__, dataclasses.asdict(config.data)]
    if isinstance(config, PromptedRunConfig):
        reads.append(config.model)
    named = json.dumps(reads, sort_keys=True)
    return hmac.new(key, named.encode(), "sha256").hexdigest()


def _key(path: Path) -> bytes | None:
    """This user's secret, made at the first call."""
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_atomically(path) as temporary:
                temporary.touch(0o600)
                temporary.write_bytes(secrets.token_bytes(_KEY_BYTES))
        key = path.read_bytes()
    except OSError:
        return None
    return key if len(key) == _KEY_BYTES else None
