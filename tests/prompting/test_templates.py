"""Templates: what stands in braces is replaced once, and nothing else is."""

import pytest

from lm.errors import UserError
from lm.prompting.templates import Template

ROW = {"text": "a {pair} b {{", "pair": "{text}"}


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("Review: {text}\nSentiment:", "Review: a {pair} b {{\nSentiment:", ""),
        ("{pair} {text}{answer}.", "{text} a {pair} b {{", "."),
        ("{{{pair}}} {{text}} {answer}}}", "{{text}} {text} ", "}"),
        ("{text}\n{options}\n", "a {pair} b {{\nA. one {x}\nB. two\n", ""),
    ],
)
def test_columns_are_put_in_as_they_are(text, before, after):
    assert Template(text).fill(ROW, ("one {x}", "two")) == (before, after)


def test_the_columns_are_those_in_braces():
    assert Template("{text} {{no}} {pair} {text} {options} {answer}").columns == ("text", "pair")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Sentiment:", "no place for a row"),
        ("{{text}}{answer}", "no place for a row"),
        ("{text", "a single { at character 1"),
        ("{text} }", "a single } at character 8"),
        ("{a b} {text}", "a single {"),
        ("{text}{answer}{answer}", "twice"),
    ],
)
def test_a_bad_template_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        Template(text)
