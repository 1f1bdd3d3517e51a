"""Prompts of questions: shots, judged answers and chats."""

import pytest

from lm.errors import UserError
from lm.prompting.config import PromptConfig
from lm.prompting.questions import JudgingConfig, QuestionPrompting

ROW = {"question": "What is {x}?", "context": "C", "answer": ["no"]}
SHOTS = tuple({"question": f"Q{n}", "context": f"C{n}", "answer": [f"A{n}", "other"]} for n in range(2))
JUDGING = JudgingConfig(item="{question} {proposed}, true?", stated="{question} {proposed}, how sure?")


def prompting(shots=(), **how):
    config = PromptConfig(instruction="Answer.", item="{context} {question}", separator="\n", **how)
    return QuestionPrompting(config, JUDGING, tuple(shots))


def test_shots_come_with_their_first_answer():
    assert prompting(SHOTS).ask(ROW).before == "Answer.\nC0 Q0 A0\nC1 Q1 A1\nC What is {x}?"


def test_judged_shots_are_right_and_wrong_in_turn():
    found = prompting(SHOTS).judge(ROW, "{y}")
    assert found.before == "Q0 A0, true? true\nQ1 A0, true? false\nWhat is {x}? {y}, true?"
    assert found.answers == ((" false",), (" true",))
    assert prompting(SHOTS[:1]).judge(ROW, "y").before == "Q0 A0, true? true\nWhat is {x}? y, true?"
    assert prompting(SHOTS).ask_how_sure(ROW, "y").before == "What is {x}? y, how sure?"


def test_a_chat_has_turns_and_no_space_before_answers():
    found = prompting(SHOTS[:1], chat=True)
    assert [(each["role"], each["content"]) for each in found.ask(ROW).messages] == [
        ("system", "Answer."),
        ("user", "C0 Q0"),
        ("assistant", "A0"),
        ("user", "C What is {x}?"),
    ]
    assert found.judge(ROW, "y").answers == (("false",), ("true",))


def test_columns_are_those_of_all_prompts():
    assert prompting().columns.needed == ("context", "question", "answer")
    assert QuestionPrompting(PromptConfig(item="{context}"), JUDGING).columns.needed == (
        "context",
        "question",
        "answer",
    )


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"letters": True}, "config.prompt.letters"),
        ({"score": "mean"}, "config.prompt.score"),
        ({"answers": ("a= b",)}, "config.prompt.answers"),
        ({"truncate": True}, "config.prompt.truncate"),
    ],
)
def test_settings_about_classes_are_refused(how, said):
    with pytest.raises(UserError, match=said):
        prompting(**how)


def test_options_and_judging_without_an_answer_are_refused():
    with pytest.raises(UserError, match="options"):
        QuestionPrompting(PromptConfig(item="{question} {options}"))
    with pytest.raises(UserError, match=r"config\.judging\.stated has no \{proposed\}"):
        JudgingConfig(stated="{question}")
    with pytest.raises(UserError, match=r"config\.judging\.tokens"):
        JudgingConfig(tokens=0)
    with pytest.raises(UserError, match="two different words"):
        JudgingConfig(true=" yes", false="yes")
