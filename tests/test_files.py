"""Files are whole or absent, and what killed writers left goes away."""

import os
import time

import pytest

from lm.files import as_before_on_failure, read_json, write_atomically, write_json, written_atomically
from tests.tiny import files_below


@pytest.mark.parametrize("name", ["a.json", "a[b]*.json", "größe.npz", "plain"])
def test_what_killed_writers_left_is_removed_at_the_next_write(name, tmp_path):
    path = tmp_path / name
    with pytest.raises(KeyboardInterrupt), written_atomically(path) as killed:
        raise KeyboardInterrupt
    others = [tmp_path / ".other.json", tmp_path / f".{path.stem}.short{path.suffix}"]
    for each in (killed, *others):
        each.write_text("partial")
    write_atomically(path, "whole")
    assert killed.exists()  # its writer may be alive
    long_ago = time.time() - 10_000
    for each in (killed, *others):
        os.utime(each, (long_ago, long_ago))
    write_atomically(path, "whole")
    assert files_below(tmp_path) == {name, *(other.name for other in others)}
    assert path.read_text() == "whole"


@pytest.mark.parametrize("was_there", [True, False])
def test_what_fails_leaves_a_folder_as_it_was(was_there, tmp_path):
    folder = tmp_path / "folder"
    if was_there:
        folder.mkdir()
        (folder / "mine").write_text("mine")

    def fill():
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "part").write_text("partial")
        (folder / "other").write_text("partial")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), as_before_on_failure(folder):
        fill()
    assert files_below(tmp_path) == ({"folder/mine"} if was_there else set())
    assert folder.exists() == was_there


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert files_below(tmp_path) == {"a.json"}
