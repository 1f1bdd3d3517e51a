"""Prompts: what comes first, what is asked, and what counts as an answer."""

import pytest

from lm.errors import UserError
from lm.prompting.config import PromptConfig
from lm.prompting.prompts import Prompting, columns_of, domain_texts

CLASSES = ("bad", "good")
SHOTS = ({"text": "fine", "label": "good", "place": ""}, {"text": "dull", "label": "bad", "place": ""})
ROW = {"text": "so so", "label": "bad", "place": "row 1"}
QUESTION = {"text": "2 + 2", "options": ["3", "4", "5"], "label": "4", "place": "row 1"}


def prompting(classes=CLASSES, shots=SHOTS, own_options=False, **config):
    config = {"item": "Review: {text}\nMood:", **config}
    return Prompting(PromptConfig(**config), classes, own_options, shots)


def test_a_prompt_is_instruction_shots_and_the_row():
    prompt = prompting(instruction="Judge.", separator="\n--\n").prompt(ROW)
    expected = "Judge.\n--\nReview: fine\nMood: good\n--\nReview: dull\nMood: bad\n--\nReview: so so\nMood:"
    assert (prompt.before, prompt.after) == (expected, "")
    assert prompt.answers == ((" bad",), (" good",))


@pytest.mark.parametrize(("item", "answer"), [("{text}\nMood:", " bad"), ("{text}\nMood: ", "bad"), ("{text}", " bad")])
def test_names_of_classes_follow_a_space(item, answer):
    assert prompting(item=item, shots=()).prompt(ROW).answers[0] == (answer,)


def test_several_answers_stand_for_a_class_and_shots_show_the_first():
    made = prompting(answers=("good= great| superb",))
    assert made.prompt(ROW).answers == ((" bad",), (" great", " superb"))
    assert "Mood: great\n" in made.prompt(ROW).before


def test_a_chat_alternates_and_strips_answers():
    prompt = prompting(chat=True, instruction="Judge.").prompt(ROW)
    assert [message["role"] for message in prompt.messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert prompt.messages[2]["content"] == "good"
    assert prompt.messages[-1]["content"] == "Review: so so\nMood:"
    assert prompt.answers == (("bad",), ("good",))


def test_letters_stand_for_classes():
    prompt = prompting(item="{text}\n{options}\nAnswer:", letters=True, shots=SHOTS[:1]).prompt(ROW)
    assert prompt.answers == ((" A",), (" B",))
    assert prompt.before.startswith("fine\nA. bad\nB. good\nAnswer: B\n\n")


@pytest.mark.parametrize("letters", [True, False])
def test_rows_may_have_options_of_their_own(letters):
    made = prompting(("A", "B", "C", "D"), (), True, item="{text}\n{options}\nAnswer:", letters=letters)
    answers = (" A", " B", " C") if letters else (" 3", " 4", " 5")
    assert made.prompt(QUESTION).answers == (*((answer,) for answer in answers), ())
    assert "A. 3\nB. 4\nC. 5\nAnswer:" in made.prompt(QUESTION).before


@pytest.mark.parametrize(("label", "number"), [("4", 1), ("C", 2), ("0", 0)])
def test_a_label_is_an_option_or_its_letter_or_its_number(label, number):
    made = prompting(("A", "B", "C"), (), True)
    assert made.label({**QUESTION, "label": label}) == number
    with pytest.raises(UserError, match=r"row 1: the label 'D' is not among the options 3, 4, 5"):
        made.label({**QUESTION, "label": "D"})


def test_a_prompt_never_depends_on_its_label():
    made = prompting(score="pmi")
    other = {**ROW, "label": "good"}
    assert made.prompt(ROW) == made.prompt(other)
    assert made.premise(ROW) == made.premise(other)


def test_the_premise_is_the_last_line_before_the_answer():
    assert prompting().premise(ROW).before == "Mood:"
    assert prompting(premise="In short:").premise(ROW).before == "In short:"
    assert prompting(item="{text}\nMood:\n").premise(ROW).before == "Mood:"


def test_the_digest_changes_with_everything_that_is_read():
    made = [
        prompting(),
        prompting(shots=SHOTS[::-1]),
        prompting(separator=" "),
        prompting(classes=CLASSES[::-1]),
        prompting(answers=("bad= poor",)),
    ]
    assert len({each.digest for each in made}) == len(made)
    moved = tuple({**shot, "place": "elsewhere"} for shot in SHOTS)
    assert prompting(shots=moved).digest == prompting().digest


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"answers": ("fine= x",)}, "'fine', which is not among the classes bad, good"),
        ({"answers": ("bad",)}, "pairs such as"),
        ({"answers": ("bad= |x",)}, "pairs such as"),
        ({"answers": ("bad=a", "bad=b")}, "twice"),
        ({"item": "{text}\\nMood:"}, r"config.prompt.item has a backslash and an n"),
        ({"answers": ("bad=a\\n",)}, r"config.prompt.answers has a backslash and an n"),
        ({"letters": True}, "needs {options}"),
        ({"letters": True, "answers": ("bad=x",)}, "leave config.prompt.answers empty"),
        ({"score": "max"}, "config.prompt.score must be one of"),
        ({"order": "best"}, "config.prompt.order must be one of"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config, said):
    with pytest.raises(UserError, match=said):
        prompting(**config)


def test_a_negative_number_of_shots_is_refused():
    with pytest.raises(UserError, match=r"config\.prompt\.shots must not be negative"):
        PromptConfig(shots=-1)


def test_columns_are_those_of_the_template():
    assert columns_of(PromptConfig(item="{premise} {text}")).needed == ("premise", "text", "label")
    assert columns_of(PromptConfig(), own_options=True).needed == ("text", "options", "label")


def test_domain_texts_have_the_words_and_the_length_of_the_domain():
    texts = ["a b c", "d e f g h"]
    made = domain_texts(texts, 5, seed=0)
    assert all(len(text.split()) == 4 and set(text.split()) <= set("abcdefgh") for text in made)
    assert made == domain_texts(texts, 5, seed=0) != domain_texts(texts, 5, seed=1)
