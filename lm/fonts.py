"""Names in any script in pictures: by whatever font is installed, and with one line about what none of them has."""

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib
from matplotlib import font_manager

from lm.console import Console

# Fonts with characters that Matplotlib's own lacks, as systems name them.
_OTHERS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic"),
    *("Noto Sans Thai", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Arial Unicode MS"),
)
_MISSING = re.compile(r"Glyph (\d+) .*missing from")


@contextlib.contextmanager
def style(settings: Mapping[str, Any]) -> Iterator[None]:
    """Matplotlib's settings in a context, to draw and to save in; other fonts stand in for missing characters.

    Characters that no font has are named in one note, where Matplotlib warns of each at every use.
    """
    installed = set(font_manager.fontManager.get_font_names())
    families = ["sans-serif", *(name for name in _OTHERS if name in installed)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with matplotlib.rc_context(dict[Any, Any](settings) | {"font.family": families}):
            yield
    missing = set()
    for each in caught:
        if found := _MISSING.match(str(each.message)):
            missing.add(chr(int(found[1])))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if missing:
        characters = "".join(sorted(missing))
        characters = characters if len(characters) <= 20 else f"{characters[:20]}…"
        Console(stderr=True).print(
            f"note: no installed font has {characters}, so pictures show boxes: install one, such as Noto Sans CJK"
        )
