"""Checkpoints keep what they promise to keep, and damage is noticed, told and survived."""

import errno
import logging
import resource
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from lm.errors import TrainingError, UserError
from lm.runs.checkpoints import Checkpoints
from lm.runs.checksum import checksum, former_checksum
from lm.runs.state import TrainState


def state_at(step: int) -> TrainState:
    params = {"kernel": jnp.arange(4096.0).reshape(64, 64) * step, "scale": jnp.full(3, step, jnp.bfloat16)}
    return TrainState(jnp.asarray(step, jnp.int32), params, (), None)


def save_all(checkpoints: Checkpoints, losses: dict[int, float | None]) -> None:
    for step, loss in losses.items():
        checkpoints.save(state_at(step), {"interval": {"loss": 0.1 * step}}, loss)
        checkpoints.wait()


def test_round_trip_is_exact(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save_all(checkpoints, {7: None})
    state, progress = checkpoints.restore_newest(state_at(1))
    chex.assert_trees_all_equal(state, state_at(7))
    assert progress == {"interval": {"loss": 0.1 * 7}}


def test_what_is_still_being_written_is_waited_for(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_at(7), {})
    chex.assert_trees_all_equal(checkpoints.restore_newest(state_at(1))[0], state_at(7))


def test_what_changes_after_the_call_is_not_written(tmp_path):
    checkpoints, sums = Checkpoints(tmp_path), {"loss": 1.0}
    checkpoints.save(state_at(7), {"interval": sums})
    sums["loss"] = 2.0
    assert checkpoints.restore(state_at(1), 7)[1] == {"interval": {"loss": 1.0}}


def test_the_newest_and_the_best_are_kept_also_after_reopening(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save_all(checkpoints, {1: 3.0, 2: 1.0, 3: 2.0, 4: None})
    assert checkpoints.steps == [2, 3, 4]
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.best_step == 2
    save_all(checkpoints, {5: 1.5, 6: None})
    assert checkpoints.steps == [2, 5, 6]


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove_the_metadata(path):
    (path.parents[next(i for i, p in enumerate(path.parents) if p.name == "params")] / "_METADATA").unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, remove_the_metadata])
def test_a_damaged_newest_checkpoint_is_set_aside(damage, tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, keep=3)
    save_all(checkpoints, {1: None, 2: None})
    data = max((tmp_path / "2" / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    damage(data)
    with caplog.at_level(logging.WARNING):
        state, _ = checkpoints.restore_newest(state_at(1))
    assert int(state.step) == 1
    assert "checkpoint 2 cannot be read" in caplog.text
    assert (tmp_path / "damaged-2").is_dir()
    save_all(checkpoints, {2: None})  # the run comes by here again
    assert checkpoints.steps == [1, 2]


def data_of(folder):
    return max((folder / "params").rglob("d/*"), key=lambda path: path.stat().st_size)


def test_all_damaged_is_an_error_that_names_the_folder_and_nothing_is_renamed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save_all(checkpoints, {1: None, 2: None})
    for step in (1, 2):
        flip_a_byte(data_of(tmp_path / str(step)))
    for _ in range(2):
        with pytest.raises(UserError, match=rf"none of the checkpoints in {tmp_path} can be read .* move"):
            checkpoints.restore_newest(state_at(1))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_what_is_left_of_damaged_checkpoints_is_not_begun_anew(tmp_path):
    (tmp_path / "damaged-7").mkdir()
    with pytest.raises(UserError, match="damaged-7"):
        Checkpoints(tmp_path).restore_newest(state_at(1))


def wrapped(inner):
    error = ValueError("somewhere in a thread")
    error.__cause__ = inner
    return error


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "x"),
        OSError(errno.EIO, "Input/output error"),
        wrapped(OSError(errno.EMFILE, "Too many open files")),
        ExceptionGroup("tasks", [wrapped(PermissionError(errno.EPERM, "Operation not permitted"))]),
        MemoryError(),
        ValueError("RESOURCE_EXHAUSTED: Out of memory"),
    ],
    ids=["permission", "device", "files", "group", "memory", "allocator"],
)
def test_what_cannot_be_read_now_is_not_damaged(error, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    save_all(checkpoints, {1: None, 2: None})

    def fail(*_):
        raise error

    monkeypatch.setattr(Checkpoints, "_restore_items", fail)
    with pytest.raises(UserError, match=r"memory|denied|error|files|permitted"):
        checkpoints.restore_newest(state_at(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that nobody can read")
def test_a_file_that_cannot_be_read_does_not_condemn_its_checkpoint(tmp_path):
    save_all(Checkpoints(tmp_path), {1: None, 2: None})
    data = data_of(tmp_path / "2")
    data.unlink()
    data.symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=f"{data} cannot be read: Input/output error"):
        Checkpoints(tmp_path).restore_newest(state_at(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_record_that_cannot_be_read_leaves_the_best_unknown(tmp_path, caplog):
    save_all(Checkpoints(tmp_path), {1: 1.0, 2: 2.0, 3: 3.0})
    record = tmp_path / "1" / "progress" / "metadata"
    record.write_text(record.read_text().replace("1.0", "9.0"))
    with pytest.raises(UserError, match=r"checkpoint 1 .* choose one of 2, 3$"):
        Checkpoints(tmp_path, read_only=True).best_step  # noqa: B018
    checkpoints = Checkpoints(tmp_path)
    assert int(checkpoints.restore_newest(state_at(1))[0].step) == 3
    assert "checkpoint 1 cannot be read" in caplog.text
    assert checkpoints.best_step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "damaged-1"]


def test_a_best_checkpoint_that_is_gone_is_missed(tmp_path, caplog):
    save_all(Checkpoints(tmp_path), {1: 1.0, 2: 2.0, 3: 3.0})
    assert Checkpoints(tmp_path, read_only=True).best_step == 1
    assert not caplog.text
    shutil.rmtree(tmp_path / "1")
    assert Checkpoints(tmp_path, read_only=True).best_step == 2
    assert "the best checkpoint, 1, is no longer" in caplog.text


def test_a_model_made_of_other_files_is_refused_by_their_names(tmp_path):
    origin = {"tokenizer.json": "1f", "model.heads": 2, "model.later": 1}
    save_all(Checkpoints(tmp_path, origin=origin), {1: None})
    Checkpoints(tmp_path, origin={**origin, "model.new": 3}).restore(state_at(1), 1)
    Checkpoints(tmp_path, origin={}).restore(state_at(1), 1)
    others = Checkpoints(tmp_path, origin={"tokenizer.json": "2f", "model.heads": 1})
    for read in (lambda: others.restore_newest(state_at(1)), lambda: others.restore_params(state_at(1).params, 1)):
        with pytest.raises(UserError, match=r"tokenizer\.json; config\.model\.heads was 2, is 1"):
            read()
    assert others.steps == [1]


def test_a_full_disk_keeps_the_last_complete_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = state_at(2).replace(params={"kernel": jax.random.normal(jax.random.key(0), (64, 64))})
    checkpoints.save(state.replace(step=jnp.asarray(1, jnp.int32)), {})
    checkpoints.wait()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        checkpoints.save(state, {})
        with pytest.raises(TrainingError, match=r"written: File too large; the last complete one is of step 1"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    checkpoints.close()
    again = Checkpoints(tmp_path)
    assert int(again.restore_newest(state)[0].step) == 1
    again.save(state, {})
    again.wait()
    assert again.steps == [1, 2]


@pytest.mark.parametrize("name", ["a[b]", "a[!b]*?", "two words", "100%~", "größe: 東", "{1,2}$x#"])
def test_any_name_of_a_directory_can_be_written_and_read(name, tmp_path):
    folder = tmp_path / name / "checkpoints"
    save_all(Checkpoints(folder), {1: 1.0})
    assert sorted(path.name for path in folder.iterdir()) == ["1"]
    reader = Checkpoints(folder, read_only=True)
    assert (reader.steps, reader.best_step) == ([1], 1)
    chex.assert_trees_all_equal(reader.restore(state_at(2), 1)[0], state_at(1))
    flip_a_byte(data_of(folder / "1"))
    save_all(writer := Checkpoints(folder), {2: 2.0})
    flip_a_byte(data_of(folder / "2"))
    with pytest.raises(UserError, match="none of the checkpoints"):
        writer.restore_newest(state_at(1))


def test_another_model_is_reported_by_parameter_and_shape_and_nothing_is_renamed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save_all(checkpoints, {1: None})
    params = {"kernel": jnp.zeros((64, 32)), "bias": jnp.zeros(3), "scale": jnp.zeros(3, jnp.bfloat16)}
    told = r"bias is \(3,\) here and missing there; kernel is \(64, 32\) here and \(64, 64\) there$"
    with pytest.raises(UserError, match=told):
        checkpoints.restore_newest(state_at(1).replace(params=params))
    assert checkpoints.steps == [1]


def test_no_checkpoints_are_not_an_error(tmp_path):
    assert Checkpoints(tmp_path).restore_newest(state_at(1)) is None


def test_a_checksum_sees_every_bit_and_its_place_and_no_layout():
    state = state_at(3)
    kernel = state.params["kernel"]
    mesh = jax.make_mesh((8,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    others = {
        "a bit": kernel.at[5, 5].multiply(1 + 2**-23),
        "a sign": kernel.at[5, 5].multiply(-1),
        "two rows": kernel.at[jnp.array([2, 3])].set(kernel[jnp.array([3, 2])]),
        "two columns": kernel[:, ::-1],
        "transposed": kernel.T,
    }
    of_kernel = {
        name: checksum({**state.params, "kernel": changed})
        for name, changed in {"": kernel, "sharded": jax.device_put(kernel, sharding), **others}.items()
    }
    assert of_kernel.pop("sharded") == of_kernel[""]
    assert len(set(of_kernel.values())) == len(of_kernel)


def averaged_at(step: int) -> TrainState:
    state = state_at(step)
    return state.replace(averaged_params=jax.tree.map(lambda x: x + 1, state.params), optimizer_state=(state.params,))


@pytest.mark.parametrize("state", [state_at(7), averaged_at(7)], ids=["plain", "averaged"])
def test_parameters_are_read_without_the_optimizer(state, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, {})
    checkpoints.close()
    shutil.rmtree(tmp_path / "7" / "optimizer")  # nobody looks for it
    if state.averaged_params is not None:
        shutil.rmtree(tmp_path / "7" / "params")
    reader = Checkpoints(tmp_path, read_only=True)
    chex.assert_trees_all_equal(reader.restore_params(state.params, 7), state.evaluation_params)
    with pytest.raises(UserError, match=r"kernel is .* here"):
        reader.restore_params({**state.params, "kernel": jnp.zeros((64, 32))}, 7)


def test_parameters_do_not_stand_in_for_a_missing_average(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(averaged_at(7), {})
    checkpoints.close()
    shutil.rmtree(tmp_path / "7" / "averaged_params")
    with pytest.raises(Exception, match="missing"):
        Checkpoints(tmp_path, read_only=True).restore_params(averaged_at(7).params, 7)


def test_damaged_parameters_are_not_read(tmp_path):
    save_all(Checkpoints(tmp_path), {1: None})
    flip_a_byte(max((tmp_path / "1" / "params").rglob("d/*"), key=lambda path: path.stat().st_size))
    with pytest.raises(Exception, match=r"differ from what was saved|decod|checksum"):
        Checkpoints(tmp_path, read_only=True).restore_params(state_at(1).params, 1)


def test_a_changed_progress_record_is_noticed(tmp_path):
    save_all(Checkpoints(tmp_path), {1: 2.0})
    record = tmp_path / "1" / "progress" / "metadata"
    record.write_text(record.read_text().replace("0.1", "0.2"))
    with pytest.raises(ValueError, match="record differs"):
        Checkpoints(tmp_path).restore(state_at(1), 1)


def test_a_reader_changes_nothing_while_another_writes(tmp_path):
    """Opening used to clean up what looked like left over, which was what the writer was writing."""
    save_all(Checkpoints(tmp_path), {1: None})
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    Checkpoints(tmp_path, read_only=True).restore_params(state_at(1).params, 1)
    assert unfinished.exists()


def test_a_checkpoint_is_never_seen_half_deleted(tmp_path, monkeypatch):
    """A reader that opens it, or a kill, may come at any moment."""
    checkpoints, seen = Checkpoints(tmp_path, keep=1), []
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: (seen.append(path), rmtree(path, **options)))
    save_all(checkpoints, {1: None, 2: None, 3: None})
    assert set(seen) == {tmp_path / "deleted"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "deleted"]  # as a kill would leave it
    assert Checkpoints(tmp_path, read_only=True).steps == [3]
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_checkpoint_deleted_while_a_reader_opens_the_directory_is_not_missed(tmp_path, monkeypatch):
    save_all(Checkpoints(tmp_path), {1: None, 2: None})
    manager, failures = ocp.CheckpointManager, [FileNotFoundError(errno.ENOENT, "No such file or directory")] * 2

    def open_late(*arguments, **options):
        if failures:
            raise failures.pop()
        return manager(*arguments, **options)

    monkeypatch.setattr(ocp, "CheckpointManager", open_late)
    assert Checkpoints(tmp_path, read_only=True).steps == [1, 2]


@pytest.mark.parametrize("state", [state_at(7), averaged_at(7)], ids=["plain", "averaged"])
def test_checkpoints_of_earlier_versions_are_read(state, tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        progress = {"interval": {"loss": 0.5}}
        record = {**progress, "fingerprint": int(former_checksum(state))}
        arguments = {"state": ocp.args.StandardSave(state), "progress": ocp.args.JsonSave(record)}
        manager.save(7, args=ocp.args.Composite(**arguments))
    checkpoints = Checkpoints(tmp_path)
    restored, found = checkpoints.restore_newest(state)
    chex.assert_trees_all_equal(restored, state)
    assert found == progress
    chex.assert_trees_all_equal(checkpoints.restore_params(state.params, 7), state.evaluation_params)
