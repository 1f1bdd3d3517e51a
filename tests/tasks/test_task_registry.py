"""Each task states its settings, its columns, its texts and its classes, and every other setting is refused."""

import dataclasses

import pytest

from lm.errors import UserError
from lm.tasks.registry import TASKS, check_task, classes_of, columns_of, texts_of
from lm.tasks.supervised import TaskConfig

# For each setting a value that isn't its default.
SETTINGS = {
    "pair": True,
    "classes": ("a", "b"),
    "truncate": True,
    "label_smoothing": 0.1,
    "focal_gamma": 2.0,
    "mixup": 0.2,
    "class_weights": "balanced",
    "stride": 8,
    "max_answer_length": 5,
    "unanswerable": True,
    "prefix": "translate: ",
    "max_target_length": 9,
    "beams": 2,
    "length_penalty": 2.0,
    "metric_tokenizer": "zh",
}
# For each task a row, and the words of its texts.
ROWS = {
    "classification": ({"text": "one", "label": "x"}, ["one"]),
    "tagging": ({"words": ["one", "two"], "tags": ["O", "B-x"]}, ["one", "two"]),
    "question_answering": ({"context": "one", "question": "two", "answers": []}, ["one", "two"]),
    "sequence_to_sequence": ({"source": "one", "target": "two"}, ["one", "two"]),
    "completion": ({"prompt": "one", "completion": "two"}, ["one", "two"]),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_setting_is_refused_where_the_task_does_not_use_it(name):
    assert set(SETTINGS) == {field.name for field in dataclasses.fields(TaskConfig)} - {"name"}
    assert set(TASKS[name].settings) <= set(SETTINGS)
    for setting, value in SETTINGS.items():
        config = TaskConfig(name=name, **{setting: value})
        if setting in TASKS[name].settings:
            check_task(config)
            continue
        with pytest.raises(UserError) as caught:
            check_task(config)
        assert f"config.task.{setting} has no effect with config.task.name={name}: leave it out" in str(caught.value)


def test_every_setting_is_of_some_task_and_none_is_of_a_task_that_ignores_it():
    assert {setting for task in TASKS.values() for setting in task.settings} == set(SETTINGS)
    ignored = {"tagging": "mixup", "completion": "beams", "question_answering": "label_smoothing"}
    assert not any(setting in TASKS[name].settings for name, setting in ignored.items())


def test_an_unknown_task_is_refused_with_those_that_there_are():
    with pytest.raises(UserError, match=r"config.task.name must be one of classification, tagging, .*; got 'parsing'"):
        check_task(TaskConfig(name="parsing"))


@pytest.mark.parametrize("name", TASKS)
def test_rows_of_the_needed_columns_have_texts_and_perhaps_classes(name):
    config, (row, words) = TaskConfig(name=name), ROWS[name]
    assert set(columns_of(config).needed) == set(row)
    assert " ".join(texts_of(config, [row])).split() == words
    if "classes" in TASKS[name].settings:
        assert classes_of(dataclasses.replace(config, classes=("b", "a")), [row]) == ("b", "a")
    else:
        assert classes_of(config, [row]) == ()
