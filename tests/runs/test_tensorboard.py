"""TensorBoard gets what a run has to show, under names that it groups well."""

import numpy as np
from matplotlib.image import imsave
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event

from lm.runs.config import PretrainConfig
from lm.runs.tensorboard import add_products, add_settings, tag_of
from lm.runs.work_directory import WorkDirectory


def values(folder):
    """Everything in the event files: length, checksum, bytes, checksum."""
    for path in sorted(folder.glob("events*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            size = int.from_bytes(data[place : place + 8], "little")
            yield from Event.FromString(data[place + 12 : place + 12 + size]).summary.value
            place += size + 16


def test_the_curves_of_buckets_have_their_own_group():
    assert tag_of("validation/loss") == "validation/loss"
    assert tag_of("train/learning_rate") == "train/learning_rate"
    assert tag_of("validation/entropy_1of8/ece") == "validation_buckets/entropy_1of8/ece"


def test_pictures_and_texts(tmp_path):
    imsave(tmp_path / "a.png", np.zeros((3, 5, 3)))
    directory = WorkDirectory(tmp_path)
    add_products(directory, 7, {"calibration/a": tmp_path / "a.png"}, {"samples": "# one\n\n*two*"})
    found = {value.tag: value for value in values(directory.tensorboard)}
    picture = found["calibration/a"].image
    assert (picture.height, picture.width) == (3, 5)
    assert found["samples/text_summary"].tensor.string_val[0] == b"    # one\n    \n    *two*"


def test_settings_are_hyperparameters(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        add_settings(writer, PretrainConfig(seed=3), "validation/loss")
    found = {value.tag: value for value in values(tmp_path)}
    start = found["_hparams_/session_start_info"].metadata.plugin_data.content
    assert b"optimizer.learning_rate" in start
    assert b"validation/loss" in found["_hparams_/experiment"].metadata.plugin_data.content
