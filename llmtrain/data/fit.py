"""Best-fit-decreasing over lengths alone: which pieces share a row, for a million of them in a moment.

Pieces of one length are alike, and so are rows with the same room left. The loop therefore runs over
lengths, moves whole groups at once, and finds the tightest room by the lowest bit of one large integer
(best fit decreasing: Johnson 1974; for language models: Ding et al., arXiv 2404.10830).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fit:
    """Row r holds the pieces `order[bounds[r]:bounds[r + 1]]`, the longest first; no piece is in two rows."""

    order: np.ndarray  # int32 or int64 [pieces placed], indices into the lengths
    bounds: np.ndarray  # int64 [rows + 1]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.bounds) - 1


def best_fit(lengths: np.ndarray, room: int) -> Fit:
    """Pieces of 1 … `room` tokens to rows of `room`: the longest piece left goes where it fits most tightly.

    Pieces of length 0 are in no row. Equal lengths go in index order, so the answer is one for all machines.
    """
    counts = np.bincount(lengths, minlength=room + 1)
    assert len(counts) == room + 1, f"a piece longer than a row of {room}"
    counts[0] = 0
    moves = np.array(_moves(counts, room), np.int64).reshape(-1, 3)
    first, rows, each = moves.T
    sizes = rows * each
    of_move = np.repeat(np.arange(len(moves)), sizes)
    within = np.arange(len(of_move)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    row = first[of_move] + within // each[of_move]
    narrow = np.uint16 if room < 2**16 else np.int64  # numpy sorts 16 bits by counting
    longest_first = np.argsort((room - lengths).astype(narrow), kind="stable")[: len(row)]
    order = longest_first[np.argsort(row, kind="stable")]
    if len(lengths) < 2**31:
        order = order.astype(np.int32)
    return Fit(order, np.concatenate([[0], np.cumsum(np.bincount(row))]))


def _moves(counts: np.ndarray, room: int) -> list[tuple[int, int, int]]:
    """(first row, rows, pieces for each): where the pieces go, from the longest length to the shortest."""
    moves: list[tuple[int, int, int]] = []
    ranges: list[list[tuple[int, int]]] = [[] for _ in range(room + 1)]  # by room left: (first row, rows)
    held = 0  # bit f is set while ranges[f] holds any
    opened = 0

    def keep(space: int, first: int, rows: int) -> None:
        nonlocal held
        if space and rows:
            ranges[space].append((first, rows))
            held |= 1 << space

    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            fitting = held >> length
            if fitting:
                space = length + (fitting & -fitting).bit_length() - 1
                first, rows = ranges[space].pop()
                if not ranges[space]:
                    held ^= 1 << space
            else:
                space, first, rows = room, opened, -(-left // (room // length))
                opened += rows
            each = space // length
            whole = min(rows, left // each)
            if whole:
                moves.append((first, whole, each))
                keep(space - each * length, first, whole)
            left -= whole * each
            used = whole
            if left and whole < rows:  # fewer are left than fit into one more row
                moves.append((first + whole, 1, left))
                keep(space - left * length, first + whole, 1)
                left, used = 0, whole + 1
            keep(space, first + used, rows - used)
    return moves


def fill_by_cropping(fit: Fit, lengths: np.ndarray, room: int) -> Fit:
    """The rows again, every one of them full: the emptiest are taken apart, and their pieces fill the others.

    The last piece of a row may then be longer than the room it has, and is to be cropped there. What finds
    no place is in no row.
    """
    filled = np.add.reduceat(lengths[fit.order], fit.bounds[:-1]) if fit.rows else np.zeros(0, np.int64)
    short = np.flatnonzero(filled < room)
    short = short[np.argsort(filled[short], kind="stable")].tolist()  # the emptiest first
    added: dict[int, list[int]] = {}
    donors: list[int] = []  # pieces of the rows taken apart, the shortest last
    apart = 0
    row = len(short) - 1
    while row >= apart:
        gap = room - int(filled[short[row]])
        given = added.setdefault(short[row], [])
        while gap > 0 and (donors or apart < row):
            if not donors:
                at = short[apart]
                donors = fit.order[fit.bounds[at] : fit.bounds[at + 1]].tolist()
                apart += 1
            given.append(donors.pop())
            gap -= int(lengths[given[-1]])
        if gap > 0:  # nothing is left to fill it with
            break
        row -= 1
    kept = np.ones(fit.rows, bool)
    kept[short[: row + 1]] = False
    extra = [(row, piece) for row, pieces in added.items() if kept[row] for piece in pieces]
    more = np.array(extra, np.int64).reshape(-1, 2)
    sizes = np.diff(fit.bounds)
    own = np.repeat(kept, sizes)
    rows = np.concatenate([np.repeat(np.arange(fit.rows), sizes)[own], more[:, 0]])
    pieces = np.concatenate([fit.order[own], more[:, 1].astype(fit.order.dtype)])
    counts = np.bincount(rows, minlength=fit.rows)[kept]
    return Fit(pieces[np.argsort(rows, kind="stable")], np.concatenate([[0], np.cumsum(counts)]))
