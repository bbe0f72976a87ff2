"""Conversations longer than a row: counted, and refused, left out, or cut from the left between turns.

Packing would cut them where a row ends, and what follows would begin in mid-answer. The build marks in the
masks where a conversation may begin again with its head (system turn, tools) in front, such that the template
would render the rest just so (`data_prep.chat.restarts`). What is left of a dataset is a `Shortened` one: the
same stream seen through a table of segments, so that rows stay arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from llmtrain.config.schema import TooLong
from llmtrain.data.dataset import Dataset
from llmtrain.data.shards import HEAD_ENDS, RESTARTS, TRAINED


@dataclass(frozen=True)
class Excess:
    """How many documents of a dataset are longer than a row, and what became of them."""

    where: str
    what: str
    documents: int
    count: int
    longest: int
    seq_len: int
    shortened: int = 0
    dropped: int = 0

    @property
    def counted(self) -> str:
        """The counts alone, as the beginning of a sentence."""
        return (
            f"{self.where}: {self.count:,} of {self.documents:,} {self.what} are longer than a row of "
            f"{self.seq_len:,} tokens, the longest {self.longest:,}"
        )

    def __str__(self) -> str:
        parts = [f"{self.shortened:,} cut from the left"] * (self.shortened > 0)
        hardly = ", for not even their last turns fit" if self.shortened else ""
        parts += [f"{self.dropped:,} left out{hardly}"] * (self.dropped > 0)
        return f"{self.counted}: {', '.join(parts)}" if parts else self.counted


def excess_of(dataset: Dataset, seq_len: int) -> Excess | None:
    """What of a dataset of conversations is longer than a row; None when nothing is, and for text."""
    lengths = np.diff(dataset.ends, prepend=0)
    count = int((lengths > seq_len).sum())
    if not dataset.masked or not count:
        return None
    what = "conversations" if dataset.manifest.kind == "chat" else "samples"
    where = f"{dataset.folder} ({dataset.split})"
    return Excess(where, what, len(lengths), count, int(lengths.max()), seq_len)


class Shortened(Dataset):
    """A dataset seen through segments of its stream, back to back: `excess` is no longer in it.

    first, size [segments]   where a segment begins in the whole stream, and its tokens
    ends                     where documents end in the shortened stream
    """

    def __init__(self, whole: Dataset, first: np.ndarray, size: np.ndarray, ends: np.ndarray):
        super().__init__(whole.folder, whole.split, whole.manifest, whole.shards)
        self._whole = whole
        self._first, self._size = first, size
        self._begin = np.cumsum(size) - size
        self.ends = ends
        self.policy = ""

    @property
    def fingerprint(self) -> str:
        """Which tokens these are: the whole's, and what was done about the excess."""
        return f"{self._whole.fingerprint}:{self.policy}"

    @property
    def tokens(self) -> int:
        """Tokens in the shortened stream."""
        return int(self._size.sum())

    def pieces(self, start: int, stop: int) -> list[np.ndarray]:
        """Tokens `start` … `stop` of the shortened stream."""
        return self.windows(np.array([start]), np.array([stop - start]))

    def windows(self, starts: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """As a Dataset's; a copy where a window goes over the cut in a document."""
        return self._through(starts, lengths, masks=False)

    def masks(self, starts: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """As a Dataset's."""
        return self._through(starts, lengths, masks=True)

    def _through(self, starts: np.ndarray, lengths: np.ndarray, masks: bool) -> list[np.ndarray]:
        low = np.searchsorted(self._begin, starts, side="right") - 1
        counts = np.searchsorted(self._begin, starts + lengths, side="left") - low  # segments of a window
        window = np.repeat(np.arange(len(starts)), counts)
        segment = np.arange(len(window)) + np.repeat(low - (np.cumsum(counts) - counts), counts)
        begin = self._begin[segment]
        at = np.maximum(starts[window], begin)
        stop = np.minimum((starts + lengths)[window], begin + self._size[segment])
        read = self._whole.masks if masks else self._whole.windows
        parts = read(self._first[segment] + at - begin, stop - at)
        if len(parts) == len(starts):
            return parts
        bounds = [0, *np.cumsum(counts).tolist()]
        return [np.concatenate(parts[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def shorten(dataset: Dataset, seq_len: int, policy: TooLong | None) -> Dataset:
    """The dataset without what of its conversations is longer than a row; the same one when nothing is.

    None and `refuse` leave it as it is.
    """
    excess = excess_of(dataset, seq_len)
    if excess is None or policy in (None, "refuse"):
        return dataset
    starts = np.concatenate([[0], dataset.ends[:-1]])
    sizes = dataset.ends - starts
    long = np.flatnonzero(sizes > seq_len)
    tails = np.full(len(long), -1)
    heads = np.zeros(len(long), np.int64)
    if policy == "truncate_left":
        for number, document in enumerate(long.tolist()):
            marks = dataset.marks(int(starts[document]), int(sizes[document]))
            heads[number], tails[number] = cut_from_the_left(marks, seq_len)
    kept = tails >= 0
    rest = np.where(kept, sizes[long] - tails, 0)
    # two segments for each document: its head, empty unless it was cut, and the rest of it
    first, size = np.stack([starts, starts], axis=1), np.stack([np.zeros_like(sizes), sizes], axis=1)
    size[long, 0], size[long, 1] = np.where(kept, heads, 0), rest
    first[long, 1] = starts[long] + np.maximum(tails, 0)
    ends = np.cumsum(size.sum(axis=1))
    found = size.reshape(-1) > 0
    left = Shortened(dataset, first.reshape(-1)[found], size.reshape(-1)[found], ends[size.sum(axis=1) > 0])
    left.policy = str(policy)
    left.excess = replace(excess, shortened=int(kept.sum()), dropped=int((~kept).sum()))
    return left


def cut_from_the_left(marks: np.ndarray, longest: int) -> tuple[int, int]:
    """(tokens of the head, where the rest begins) such that both have at most `longest` tokens and one of the
    rest is trained on; the rest begins at -1 when there is no such place. `marks` are those of a mask file.
    """
    heads = np.flatnonzero(marks & HEAD_ENDS)
    head = int(heads[0]) if len(heads) else 0
    places = np.flatnonzero(marks & RESTARTS)
    place = int(np.searchsorted(places, max(len(marks) + head - longest, head)))
    if place == len(places) or not (marks[places[place] + 1 :] & TRAINED).any():
        return 0, -1
    return head, int(places[place])
