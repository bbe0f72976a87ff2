"""What the report tells of the documents of a dataset: flows by source, lengths, languages.

Everything adds up over chunks, so it is the same for any number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_prep.results import Result

BINS = 48  # lengths of 2**k to 2**(k + 1) - 1 tokens are one bin


@dataclass
class Flow:
    """Of a source: records and bytes of text that came in; documents, bytes and tokens in the shards;
    what was left out, by reason.

    Copies that a weight above 1 makes are in the shards as often as it says.
    """

    documents_in: int = 0
    bytes_in: int = 0
    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass
class Statistics:
    """`lengths` is [bin, (documents, tokens)]; lengths and languages are of each document once."""

    sources: list[Flow]
    lengths: np.ndarray = field(default_factory=lambda: np.zeros((BINS, 2), np.int64))
    longest: int = 0
    languages: dict[str, np.ndarray] = field(default_factory=dict)  # name → documents, bytes, tokens

    @classmethod
    def of(cls, sources: int) -> Statistics:
        """Of so many sources, of which nothing is known yet."""
        return cls([Flow() for _ in range(sources)])

    def hear(self, source: int, result: Result) -> None:
        """Takes in what was read in one pass over a chunk; only the first reads from the source."""
        self.sources[source].documents_in += result.tally.documents_in
        self.sources[source].bytes_in += result.parsed_bytes
        left_out = self.sources[source].left_out
        for reason, count in result.tally.rejected.items():
            left_out[reason] = left_out.get(reason, 0) + count

    def take(self, source: int, rows: np.ndarray, languages: Sequence[str], turn: int) -> None:
        """Takes in DOCUMENT rows that are written, `turn` 0 for the first time."""
        flow, tokens = self.sources[source], rows["tokens"]
        flow.documents += len(rows)
        flow.bytes += int(rows["bytes"].sum())
        flow.tokens += int(tokens.sum())
        if turn or not len(rows):
            return
        self.longest = max(self.longest, int(tokens.max()))
        bins = np.frexp(np.maximum(tokens, 1))[1] - 1
        np.add.at(self.lengths, bins, np.stack([np.ones_like(tokens), tokens], axis=1))
        for number in np.unique(rows["language"]).tolist():
            mine = rows[rows["language"] == number]
            amounts = np.array([len(mine), mine["bytes"].sum(), mine["tokens"].sum()], np.int64)
            self.languages[languages[number]] = self.languages.get(languages[number], 0) + amounts
