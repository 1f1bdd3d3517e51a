"""What a published tokenizer puts around a text and around a pair of texts, such as [CLS] a [SEP] b [SEP]."""

import dataclasses

from tokenizers import Tokenizer as Backend

from lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Frame:
    """Special tokens around texts.

    Attributes:
      before: ids before the first text.
      between: ids between the first text and the second.
      after: ids after the last text.
      second_type: the token type of the second text and of `after` in a pair; everything else has type 0.
      between_second: how many of the last tokens of `between` have the second text's type too.
    """

    before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    second_type: int = 1
    between_second: int = 0

    def around(self, ids: list[int]) -> list[int]:
        """A text with the special tokens around it."""
        return [*self.before, *ids, *self.after]


def frame_of(backend: Backend) -> Frame:
    """The frame that the post-processor of a tokenizer puts around texts.

    Raises:
      UserError: if it is not of the form `Frame` describes.
    """
    single, pair = backend.encode("a"), backend.encode("a", "a")
    places = pair.sequence_ids
    first = [place for place, sequence in enumerate(places) if sequence == 0]
    second = [place for place, sequence in enumerate(places) if sequence == 1]
    if not first or not second or first[-1] > second[0]:
        raise UserError("the tokenizer's post-processor does not place a pair's texts in order: use another tokenizer")
    types = pair.type_ids
    frame = Frame(
        before=tuple(pair.ids[: first[0]]),
        between=tuple(pair.ids[first[-1] + 1 : second[0]]),
        after=tuple(pair.ids[second[-1] + 1 :]),
        second_type=types[second[0]],
        between_second=sum(1 for type_ in types[first[-1] + 1 : second[0]] if type_ and type_ == types[second[0]]),
    )
    head = second[0] - frame.between_second
    expected = [frame.second_type * (place >= head) for place in range(len(types))]
    alone = frame.around([id_ for id_, sequence in zip(single.ids, single.sequence_ids, strict=True) if sequence == 0])
    if types != expected or any(single.type_ids) or alone != single.ids:
        raise UserError("the tokenizer's post-processor places special tokens in an unknown way: use another tokenizer")
    return frame


def with_bos_and_eos(frame: Frame, bos: int | None, eos: int | None) -> Frame:
    """The frame in which each text also has these tokens before and after it, where the frame has none there.

    Args:
      frame: of the post-processor.
      bos: id before each text; None: there is none.
      eos: id after each text; None: there is none.
    """
    start = () if bos is None or frame.before else (bos,)
    end = () if eos is None or frame.after else (eos,)
    between = (*end, *frame.between, *start)
    return dataclasses.replace(
        frame,
        before=start + frame.before,
        between=between,
        after=frame.after + end,
        between_second=frame.between_second + len(start),
    )
