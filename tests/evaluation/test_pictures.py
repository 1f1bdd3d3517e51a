"""Confusion pictures show the numbers they are given, readably, and as files of the kind asked for."""

import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from lm.errors import UserError
from lm.evaluation.pictures import _draw, save_confusion_picture

CONFUSION = np.array([[90, 10, 0], [1, 399, 0], [0, 0, 0]])
NAMES = ("negative", "positive", "unused")


def cells(figure):
    return {text.get_position(): text for text in figure.axes[0].texts}


def luminance(colour):
    channels = np.array(colour[:3])
    linear = np.where(channels <= 0.04, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_cells_show_counts_and_shares_of_the_row():
    figure = _draw(CONFUSION, NAMES)
    written = {place: text.get_text() for place, text in cells(figure).items()}
    # Places are (x, y): the predicted class goes along x.
    assert written[0, 0] == "90\n90.0%"
    assert written[1, 0] == "10\n10.0%"
    assert written[0, 1] == "1\n0.2%"
    assert written[1, 1] == "399\n99.8%"
    assert [written[column, 2] for column in range(3)] == ["0", "0", "0"]
    (image,) = figure.axes[0].images
    np.testing.assert_allclose(image.get_array(), [[0.9, 0.1, 0], [0.0025, 0.9975, 0], [0, 0, 0]])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(NAMES)


def test_shares_are_not_rounded_to_none_or_all():
    many = np.zeros((5, 5), int)
    many[0, :2] = 3, 9997
    written = cells(_draw(many, list("abcde")))
    assert written[0, 0].get_text() == "3\n<1%"
    assert written[1, 0].get_text() == "9,997\n>99%"


def test_letters_stand_out_from_their_shade():
    shares = np.linspace(0, 1000, 20).astype(int)
    figure = _draw(np.stack([shares, 1000 - shares] + [np.zeros(20, int)] * 18, axis=1), [str(n) for n in range(20)])
    (image,) = figure.axes[0].images
    for (column, row), text in cells(figure).items():
        shade = luminance(image.to_rgba(image.get_array())[row, column])
        light, dark = sorted([shade, luminance(to_rgb(text.get_color()))], reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 3.8


HOSTILE = ["$x^2$", "$\\frac$", "a\x1b[31mb", "\x00", "\ufffe\uffff", "\ud800", "<b>&amp;", "[/]", "a\nb"]


def test_names_with_control_characters_or_markup_are_in_a_valid_svg(tmp_path):
    save_confusion_picture(np.eye(len(HOSTILE), dtype=int), HOSTILE, tmp_path / "a.svg")
    texts = {"".join(each.itertext()) for each in ElementTree.parse(tmp_path / "a.svg").iter()}
    assert texts >= {"$x^2$", "$\\frac$", "a\\x1b[31mb", "\\x00", "\\ufffe\\uffff", "\\ud800", "<b>&amp;", "[/]", "a b"}


@pytest.mark.parametrize(
    ("classes", "name"),
    [(1, "x"), (2, "x"), (2, "a long name of a class, much too long"), (9, "B-PER"), (20, "talk.misc")],
)
def test_nothing_is_cut_off_or_overlaps(classes, name):
    figure = _draw(np.full((classes, classes), 12345), [f"{name}{n}" for n in range(classes)])
    figure.draw_without_rendering()
    inside, paper = figure.get_tightbbox(), figure.get_size_inches()
    assert min(inside.x0, inside.y0) >= 0
    assert inside.x1 <= paper[0]
    assert inside.y1 <= paper[1]
    for texts, upright in ((cells(figure).values(), True), (figure.axes[0].get_xticklabels(), False)):
        if upright or texts[0].get_rotation() == 0:
            boxes = [text.get_window_extent() for text in texts]
            assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_many_classes_are_shades_with_a_scale():
    figure = _draw(np.eye(40, dtype=int), [str(n) for n in range(40)])
    assert not cells(figure)
    assert figure.axes[1].get_ylabel() == "Share of the true class"


def test_files_are_of_the_kind_asked_for(tmp_path):
    names = ("$\\undefined$", "<b>&", "long " * 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("new/confusion.png", "new/confusion.svg", "new/again.svg"):
            save_confusion_picture(CONFUSION, names, tmp_path / name)
    assert imread(tmp_path / "new/confusion.png")[..., :3].std() > 0.02
    svg = (tmp_path / "new/confusion.svg").read_text()
    assert svg == (tmp_path / "new/again.svg").read_text()
    assert ">399</" in svg
    assert "&lt;b&gt;&amp;" in svg


def test_wrong_input_is_named(tmp_path):
    with pytest.raises(UserError, match=r"confusion.txt.*\.png or \.svg"):
        save_confusion_picture(CONFUSION, NAMES, tmp_path / "confusion.txt")
    with pytest.raises(ValueError, match="2 class names"):
        save_confusion_picture(CONFUSION, NAMES[:2], tmp_path / "confusion.png")
    assert not list(tmp_path.iterdir())


def test_names_with_control_characters_are_well_formed_xml(tmp_path):
    path = tmp_path / "confusion.svg"
    save_confusion_picture(np.eye(2), ["\x1b[31m<b>&\x00", "\ufffe\ud800 ]]>"], path)
    assert "\\x1b[31m<b>&\\x00" in "".join(ElementTree.parse(path).getroot().itertext())


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_characters_that_no_font_has_are_named_once(suffix, tmp_path, capsys):
    names = ("\ue001好", "\ue001\ue002", "positive")  # of private use, so in no font
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_confusion_picture(CONFUSION, names, tmp_path / f"confusion.{suffix}")
    said = capsys.readouterr().err
    assert said.count("note: no installed font has") == 1
    assert "\ue001" in said
    save_confusion_picture(CONFUSION, NAMES, tmp_path / f"confusion.{suffix}")
    assert capsys.readouterr().err == ""
