"""Which token sequences a decoder reads once for several pairs of a prompt and a continuation.

A sequence that begins another one needs no pass of its own: a decoder's states do not depend on later tokens. And
sequences that begin alike, such as prompts with the same examples, share the states of their beginning.
"""

import dataclasses
import itertools
from collections.abc import Sequence

# Fewer tokens are not worth a cache.
_FEWEST_SHARED = 16


@dataclasses.dataclass
class Row:
    """A sequence to read.

    Attributes:
      tokens: the whole sequence.
      pairs: indices of the pairs that it serves.
      first: the first place whose state one of them needs.
    """

    tokens: Sequence[int]
    pairs: list[int]
    first: int


@dataclasses.dataclass
class Group:
    """Rows with a common beginning.

    Attributes:
      rows: in no particular order.
      shared: number of tokens that are read once for all; 0: none.
    """

    rows: list[Row]
    shared: int = 0


def rows_to_read(sequences: Sequence[Sequence[int]], firsts: Sequence[int]) -> list[Row]:
    """The sequences that are not the beginning of another one, sorted by their tokens.

    Args:
      sequences: what is read for each pair.
      firsts: the first place whose state each pair needs.
    """
    rows: list[Row] = []
    # From the last to the first, a sequence comes right after those that it begins.
    for pair in sorted(range(len(sequences)), key=lambda pair: tuple(sequences[pair]), reverse=True):
        tokens = sequences[pair]
        if rows and list(rows[-1].tokens[: len(tokens)]) == list(tokens):
            rows[-1].pairs.append(pair)
            rows[-1].first = min(rows[-1].first, firsts[pair])
        else:
            rows.append(Row(tokens, [pair], firsts[pair]))
    return rows


def groups_with_shared_prefix(rows: Sequence[Row]) -> list[Group]:
    """Rows that share at least half of what their first ones share, and not less than is worth a cache; and the others.

    Args:
      rows: sorted by their tokens. The states that they need are not among those that are shared.
    """
    groups: list[Group] = []
    for row in rows:
        if groups:
            group = groups[-1]
            before = group.rows[-1]
            shared = min(common_length(before.tokens, row.tokens), before.first, row.first)
            shared = min(shared, group.shared) if len(group.rows) > 1 else shared
            if shared >= max(_FEWEST_SHARED, group.shared // 2):
                group.rows.append(row)
                group.shared = shared
                continue
        groups.append(Group([row]))
    # Rows that share nothing can still be read side by side.
    alone = [group.rows[0] for group in groups if not group.shared]
    return [*(group for group in groups if group.shared), *([Group(alone)] if alone else ())]


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens with which both begin."""
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in alike)
