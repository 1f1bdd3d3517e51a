"""Each task states its settings, its columns, its texts and its classes, and every other setting is refused."""

import dataclasses

import pytest

from lm.errors import UserError
from lm.tasks.registry import TASKS, check_task, classes_of, columns_of, texts_of
from lm.tasks.supervised import TaskConfig

WITH_CLASSES, WRITING = {"classification", "tagging"}, {"sequence_to_sequence", "completion"}
SETTINGS = {
    "pair": (True, {"classification"}),
    "classes": (("a", "b"), WITH_CLASSES),
    "truncate": (True, set(TASKS)),
    "label_smoothing": (0.1, WITH_CLASSES | WRITING),
    "focal_gamma": (2.0, WITH_CLASSES),
    "mixup": (0.2, {"classification"}),
    "class_weights": ("balanced", WITH_CLASSES),
    "stride": (8, {"question_answering"}),
    "max_answer_length": (5, {"question_answering"}),
    "unanswerable": (True, {"question_answering"}),
    "prefix": ("translate: ", {"sequence_to_sequence"}),
    "max_target_length": (9, WRITING),
    "beams": (2, {"sequence_to_sequence"}),
    "length_penalty": (2.0, {"sequence_to_sequence"}),
}
ROWS = {
    "classification": {"text": "one", "label": "x"},
    "tagging": {"words": ["one", "two"], "tags": ["O", "B-x"]},
    "question_answering": {"context": "one", "question": "two", "answers": []},
    "sequence_to_sequence": {"source": "one", "target": "two"},
    "completion": {"prompt": "one", "completion": "two"},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_a_task_does_not_use_is_refused(setting):
    assert set(SETTINGS) == {field.name for field in dataclasses.fields(TaskConfig)} - {"name"}
    value, users = SETTINGS[setting]
    for name in TASKS:
        config = TaskConfig(name=name, **{setting: value})
        if name in users:
            check_task(config)
            continue
        with pytest.raises(UserError) as caught:
            check_task(config)
        assert f"config.task.{setting} does nothing with config.task.name={name}: leave it out" in str(caught.value)


def test_an_unknown_task_is_refused_with_those_that_there_are():
    with pytest.raises(UserError, match=r"config.task.name must be one of classification, tagging, .*; got 'parsing'"):
        check_task(TaskConfig(name="parsing"))


@pytest.mark.parametrize("name", TASKS)
def test_rows_of_the_needed_columns_have_texts_and_perhaps_classes(name):
    config, row = TaskConfig(name=name), ROWS[name]
    assert set(columns_of(config).needed) == set(row)
    words = " ".join(texts_of(config, [row])).split()
    assert words == (["one"] if name == "classification" else ["one", "two"])
    if name not in WITH_CLASSES:
        assert classes_of(config, [row]) == ()
        return
    given = dataclasses.replace(config, classes=("b", "a"))
    assert classes_of(given, [row]) == ("b", "a")
