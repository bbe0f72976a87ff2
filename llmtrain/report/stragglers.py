"""Slow ranks: which rank works longer than its peers, from the seconds that each rank worked in each step.

All ranks wait for the slowest in every step, so one GPU that is too hot, or one machine that another program
runs on, costs the whole run. A rank is compared with the middle of the ranks that do the same work: all of
them, or those of its pipeline stage. It is slow when it was slower in three of four slices of a window (a
slice is a step, or as many quick ones as make `SLICE_S`): a long pause, and chance, fill a few slices only.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SLICE_S = 1.0
WINDOW = 20  # slices
BUT = 5  # so many of them may say otherwise
SLOW = 1.5  # times the middle of its peers
FINE = 1.25  # a slow rank is none any more below this, in half of the slices


class Stragglers:
    """Judges after each window. Ranks `n·dp … n·dp + dp - 1` do the same work."""

    def __init__(self, dp: int):
        self._dp = dp
        self._sums: list[float] = []  # each rank's seconds in the slice that is under way
        self._ratios: list[list[float]] = []  # each rank's, slice after slice
        self._slow: set[int] = set()

    def add(self, busy: Sequence[float]) -> list[tuple[int, float, bool]]:
        """Takes in the ranks' seconds in a step; (rank, ratio, slow) of each that is slow now, or no more."""
        if self._dp == 1 or not all(seconds > 0 for seconds in busy):
            return []  # nobody to be compared with, or nothing was trained
        self._sums = [a + b for a, b in zip(self._sums or [0.0] * len(busy), busy, strict=True)]
        if max(self._sums) < SLICE_S:
            return []
        firsts = range(0, len(busy), self._dp)
        middles = [statistics.median_low(self._sums[first : first + self._dp]) for first in firsts]
        self._ratios.append([sum_ / middles[rank // self._dp] for rank, sum_ in enumerate(self._sums)])
        self._sums = []
        return self._judge() if len(self._ratios) == WINDOW else []

    def _judge(self) -> list[tuple[int, float, bool]]:
        changed = []
        for rank, ratios in enumerate(zip(*self._ratios, strict=True)):
            was, ratio = rank in self._slow, statistics.median(ratios)
            slow = ratio > FINE if was else sorted(ratios)[BUT] > SLOW
            if slow != was:
                self._slow ^= {rank}
                changed.append((rank, ratio, slow))
        self._ratios = []
        return changed


def told(rank: int, host: str, ratio: float, slow: bool) -> str:
    """One line for people."""
    who = _who(rank, host)
    if slow:
        return f"{who} is slow: its own work takes {ratio:.1f} times as long as its peers' takes"
    return f"{who} is not slow any more"


def episodes(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """What metrics.jsonl says of slow ranks, an episode a line."""
    lines: list[str] = []
    under_way: dict[int, int] = {}  # rank: its line
    for record in records:
        rank = record.get("slow_rank")
        if rank is None:
            continue
        if record["recovered"] and rank in under_way:
            lines[under_way.pop(rank)] += f" to {record['step']:,}"
        elif not record["recovered"]:
            under_way[rank] = len(lines)
            seen = f"slow ({record['ratio']:.1f} times its peers), seen in step {record['step']:,}"
            lines.append(f"{_who(rank, record['host'])} {seen}")
    return lines


def _who(rank: int, host: str) -> str:
    return f"rank {rank} on {host}" if host else f"rank {rank}"
