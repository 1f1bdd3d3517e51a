"""Entity metrics for tagged sentences: a predicted entity counts if its words and type are exactly right.

Tags mark entities in one of four schemes, PREFIX-TYPE with these prefixes, or the prefix alone where there is one type:

    BIO      begin, inside (Ramshaw and Marcus 1995)
    BIOES    and end, single word
    BILOU    begin, inside, last, unit: BIOES in other letters (Ratinov and Roth 2009)
    BMES     begin, middle, end, single (or W): BIOES in other letters, as for Chinese

In all of them O is a word outside.
"""

import functools
import re
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from lm.errors import UserError
from lm.evaluation.classification import SCORES
from lm.statistics.metrics import SHARE, Metric, Ratio

OUTSIDE = "O"
SCHEMES = {"BIO": "BI", "BIOES": "BIES", "BILOU": "BILU", "BMES": "BMESW"}

_TAG = re.compile(r"([BIESLUMW])(?:-(.+))?", re.DOTALL)
# What people also write: B_PER, b-per, PER-B.
_OTHER_NOTATION = re.compile(r"([BIESLUM])[-_:./].*|.+[-_:./]([BIESLUM])", re.DOTALL | re.IGNORECASE)
# Every word is in a segment and there is one type, as where Chinese is segmented into words: no tag says O.
_WITHOUT_OUTSIDE = ({"B", "E", "S"}, {"B", "L", "U"})
_AS_BIOES = {"L": "E", "U": "S", "M": "I", "W": "S"}


def entity_scheme(tags: Collection[str]) -> str | None:
    """The name of the scheme in `SCHEMES` by which tags mark entities; None if they mark none, as for parts of speech.

    Raises:
      UserError: if some tags mark entities and others don't, or they do so in more than one scheme, or in another
        notation.
    """
    found = {tag: match for tag in tags if (match := _TAG.fullmatch(tag))}
    others = sorted(set(tags) - {OUTSIDE, *found})
    segments = not others and any(marks <= set(tags) for marks in _WITHOUT_OUTSIDE)
    marked = any(match[2] and match[1] in "BI" for match in found.values())
    if not (marked or segments) and (others or OUTSIDE not in tags):
        _check_notation(tags)
        return None
    if len({match[2] is None for match in found.values()}) > 1:
        others.append(next(tag for tag, match in found.items() if match[2] is None))
    if others:
        raise UserError(
            f"{next(iter(found))} marks an entity and {others[0]} does not, but is not {OUTSIDE}: fix the tags"
        )
    prefixes = {match[1] for match in found.values()}
    scheme = next((name for name, letters in SCHEMES.items() if prefixes <= set(letters)), None)
    if scheme is None:
        raise UserError(
            f"the tags mix schemes, with the prefixes {', '.join(sorted(prefixes))}: use those of one, "
            f"{', '.join(SCHEMES)}"
        )
    return scheme


def _check_notation(tags: Collection[str]) -> None:
    """Raises UserError if all tags but O seem to mark entities, but not as the schemes do."""
    matches = [_OTHER_NOTATION.fullmatch(tag) for tag in tags if tag not in (OUTSIDE, OUTSIDE.lower())]
    if len(matches) == len(tags) or not all(matches):
        return
    if {(match[1] or match[2]).upper() for match in matches if match} & {"B", "I"}:
        example = next(tag for tag in tags if tag not in (OUTSIDE, OUTSIDE.lower()))
        raise UserError(f"{example} seems to mark an entity: write such tags as B-TYPE and I-TYPE, others as {OUTSIDE}")


def entity_metrics(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Metric]:
    """Precision, recall and F1 of entities, in [0, 1], as conlleval defines them (Tjong Kim Sang and Buchholz 2000).

    An entity begins at B-TYPE, and also at an I-TYPE that continues no entity; likewise for the other schemes, where it
    need not have an end. Metrics over all types are micro averages over entities; a metric with denominator 0 is 0. The
    items are the sentences.

    Args:
      gold: tags of each sentence in one of the schemes, such as ["B-PER", "I-PER", "O"].
      predicted: the same for the predictions.

    Returns:
      `f1`, `precision`, `recall`, `token_accuracy` (the share of words with the right tag), then `f1/TYPE`,
      `precision/TYPE`, `recall/TYPE` of each type that occurs.

    Raises:
      UserError: if sentences differ in number or in length.
    """
    _check(gold, predicted)
    entities = [(_entities(tags), _entities(others)) for tags, others in zip(gold, predicted, strict=True)]
    types = sorted({entity[0] for pair in entities for found in pair for entity in found})
    statistics = [
        [
            *_per_type(true & guessed, types),
            *_per_type(guessed, types),
            *_per_type(true, types),
        ]
        for true, guessed in entities
    ]
    statistics_NK = np.array(statistics, np.float64).reshape(len(gold), 3 * len(types))
    metric = functools.partial(Metric, statistics_NK, better="higher", limits=SHARE)
    names = ("f1", "precision", "recall")
    metrics = {name: metric(functools.partial(_score, name, slice(None))) for name in names}
    metrics["token_accuracy"] = _token_accuracy(gold, predicted)
    for index, type_name in enumerate(types):
        for name in names:
            metrics[f"{name}/{type_name}"] = metric(functools.partial(_score, name, slice(index, index + 1)))
    return metrics


def _check(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> None:
    if len(gold) != len(predicted):
        raise UserError(f"need predicted tags for each sentence, got {len(predicted)} for {len(gold)} sentences")
    for number, (tags, others) in enumerate(zip(gold, predicted, strict=True), start=1):
        if len(tags) != len(others):
            raise UserError(
                f"need a predicted tag for each word, got {len(others)} for {len(tags)} in sentence {number}"
            )


def _entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Type, first and last word of each entity."""
    from seqeval.metrics.sequence_labeling import get_entities  # takes seconds, because it imports scikit-learn

    return set(get_entities([_as_bioes(tag) for tag in tags]))


def _as_bioes(tag: str) -> str:
    match = _TAG.fullmatch(tag)
    return tag if match is None else f"{_AS_BIOES.get(match[1], match[1])}-{match[2] or 'entity'}"


def _per_type(entities: set[tuple[str, int, int]], types: Sequence[str]) -> list[int]:
    count = Counter(entity[0] for entity in entities)
    return [count[type_name] for type_name in types]


def _score(name: str, types: slice, sums: np.ndarray) -> np.ndarray:
    return SCORES[name](*(count[..., types].sum(axis=-1) for count in np.split(sums, 3, axis=-1)))


def _token_accuracy(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Metric:
    pairs = zip(gold, predicted, strict=True)
    right_N = [sum(map(str.__eq__, tags, others)) for tags, others in pairs]
    statistics_N2 = np.array([right_N, [len(tags) for tags in gold]], np.float64).T
    return Metric(statistics_N2, Ratio(), better="higher", limits=SHARE)
