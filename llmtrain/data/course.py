"""Which source gives the row at each position of a run, as a list of spans with one mixture each.

Weights alone make one endless span. A phase begins a span, and so does a source that has given all its
epochs: from there on the others share its rows in proportion. A token budget is a number of rows of the run,
met exactly. Every span knows how many rows each source gave before it, so any position is found at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmtrain.config.schema import DataSection, DataSource, TrainSource
from llmtrain.data.order import LONGEST_PERIOD, LongMixture, Mixture
from llmtrain.errors import ConfigError, Problem


@dataclass(frozen=True)
class Span:
    """From position `first` on: `mixture` of the `sources`, of which each gave `before` rows until then."""

    first: int
    sources: tuple[int, ...]
    mixture: Mixture | LongMixture
    before: tuple[int, ...]  # over all sources of the run


@dataclass(frozen=True)
class Course:
    """The source of every row, and how many of its rows came before. `end`: rows in all, if they do end."""

    spans: tuple[Span, ...]
    end: int | None = None

    @classmethod
    def by_weight(cls, sources: Sequence[DataSource]) -> Course:
        """One span without end."""
        mixture = Mixture([source.weight for source in sources])
        return cls((Span(0, tuple(range(len(sources))), mixture, (0,) * len(sources)),))

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each position: its source, and how many rows of that source came before (both int64)."""
        assert self.end is None or not len(positions) or positions.max() < self.end, "past the last row"
        if len(self.spans) == 1 and len(self.spans[0].sources) == len(self.spans[0].before):
            return self.spans[0].mixture(positions)
        span_of = np.searchsorted([span.first for span in self.spans], positions, side="right") - 1
        source, turn = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(span_of).tolist():
            mine, span = span_of == number, self.spans[number]
            which, rank = span.mixture(positions[mine] - span.first)
            source[mine] = np.array(span.sources)[which]
            turn[mine] = rank + np.array(span.before)[source[mine]]
        return source, turn

    def given(self, rows: int) -> list[int]:
        """How many of the first `rows` rows come from each source."""
        last = next(span for span in reversed(self.spans) if span.first <= rows)
        given = list(last.before)
        for source, more in zip(last.sources, last.mixture.given(rows - last.first), strict=True):
            given[source] += more
        return given

    @property
    def identity(self) -> list[Any]:
        """All that decides it; empty when weights alone do."""
        if len(self.spans) == 1 and isinstance(self.spans[0].mixture, Mixture) and self.end is None:
            return []
        return [[span.first, span.sources, span.mixture.parts] for span in self.spans]


@dataclass
class CoursePlanner:
    """Makes the course of a run of `steps` steps of `rows_per_step` rows.

    available  rows of each source in one epoch
    origins    where each field of the run came from
    """

    data: DataSection
    available: Sequence[int]
    steps: int
    rows_per_step: int
    origins: Mapping[str, str] = field(default_factory=dict)

    def plan(self) -> Course:
        """Raises ConfigError when the run needs rows that its sources may not give."""
        if any(source.tokens is not None for source in self.data.train):
            return self._by_budgets()
        if not self.data.phases and all(source.max_epochs is None for source in self.data.train):
            return Course.by_weight(self.data.train)
        course = self._by_phases()
        if course.end is not None and course.end < self.rows:
            limited = [number for number, limit in enumerate(self._limits()) if limit is not None]
            sums = ", ".join(self._epochs(number, course.given(course.end)[number]) for number in limited)
            fix = f"{sums} have given all they may after {self._tokens(course.end)} tokens, and "
            fix += f"{self._needs()}: raise it, add data, or shorten the schedule"
            raise self._error(f"train.{limited[0]}.max_epochs", fix)
        return course

    @property
    def rows(self) -> int:
        """Rows of the whole run."""
        return self.steps * self.rows_per_step

    def _by_budgets(self) -> Course:
        """One mixture whose period is the run. Sources with a weight share what the budgets leave."""
        sources = self.data.train
        rows = [self._budget(source) for source in sources]
        budgets, weighted = sum(rows), [source.weight * (source.tokens is None) for source in sources]
        first = next(number for number, source in enumerate(sources) if source.tokens is not None)
        left = self.rows - budgets
        if sum(weighted):
            if left < 1:
                fix = (
                    f"the budgets add up to {self._tokens(budgets)} tokens and {self._needs()}, which leaves "
                )
                raise self._error(f"train.{first}.tokens", fix + "nothing for the sources with a weight")
            rows = [given + share for given, share in zip(rows, _shared(left, weighted), strict=True)]
        elif abs(left) >= self.rows_per_step:
            fix = (
                f"the budgets add up to {self._tokens(budgets)} tokens and {self._needs()}: make them equal, "
            )
            raise self._error(f"train.{first}.tokens", fix + "or give one source a weight instead")
        for number, limit in enumerate(self._limits()):
            if limit is not None and rows[number] > limit:
                fix = f"this run takes {self._epochs(number, rows[number])}; raise it or lower the share"
                raise self._error(f"train.{number}.max_epochs", fix)
        used = [number for number, share in enumerate(rows) if share]
        parts = [rows[number] // math.gcd(*rows) for number in used]
        mixture = Mixture(parts) if sum(parts) <= LONGEST_PERIOD else LongMixture(parts)
        span = Span(0, tuple(used), mixture, (0,) * len(rows))
        return Course((span,), end=self.rows)

    def _by_phases(self) -> Course:
        limits = self._limits()
        spans: list[Span] = []
        first, given = 0, [0] * len(limits)
        for weights, stop in self._phases():
            while stop is None or first < stop:
                some = tuple(k for k, weight in enumerate(weights) if weight and given[k] != limits[k])
                if not some:
                    return Course(tuple(spans), end=first)
                spans.append(Span(first, some, Mixture([weights[k] for k in some]), tuple(given)))
                after = [stop] if stop is not None else []
                for at, source in enumerate(some):
                    limit = limits[source]
                    if limit is not None:
                        last = spans[-1].mixture.position(at, limit - given[source] - 1)
                        after.append(first + last + 1)
                if not after:
                    return Course(tuple(spans))
                first = min(after)
                given = Course(tuple(spans)).given(first)
        raise AssertionError("the last phase has no end")

    def _phases(self) -> list[tuple[list[float], int | None]]:
        """Weights of all sources (0: not in it) and where each phase stops; the last stops nowhere."""
        sources = self.data.train
        if not self.data.phases:
            return [([source.weight for source in sources], None)]
        found: list[tuple[list[float], int | None]] = []
        for phase in self.data.phases:
            weights = [phase.weights.get(source.label, 0.0) for source in sources]
            found.append((weights, round(phase.until * self.steps) * self.rows_per_step))
        return [*found[:-1], (found[-1][0], None)]

    def _limits(self) -> list[int | None]:
        return [
            None if source.max_epochs is None else max(1, int(source.max_epochs * rows))
            for source, rows in zip(self.data.train, self.available, strict=True)
        ]

    def _budget(self, source: TrainSource) -> int:
        return 0 if source.tokens is None else math.ceil(source.tokens / self.data.seq_len)

    def _tokens(self, rows: int) -> str:
        return f"{rows * self.data.seq_len:,}"

    def _needs(self) -> str:
        return f"the run takes {self._tokens(self.rows)}"

    def _epochs(self, number: int, rows: int) -> str:
        return f"{rows / self.available[number]:.2f} epochs of {self.data.train[number].label}"

    def _error(self, name: str, fix: str) -> ConfigError:
        number, key = name.split(".")[1:]
        value = getattr(self.data.train[int(number)], key)
        return ConfigError(Problem(f"data.{name}", value, self.origins.get(f"data.{name}", "run"), fix))


def _shared(rows: int, weights: Sequence[float]) -> list[int]:
    """`rows` whole rows by weight, what is left over to the largest remainders."""
    quotas = [rows * weight / sum(weights) for weight in weights]
    shares = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda k: shares[k] - quotas[k])
    for k in by_remainder[: rows - sum(shares)]:
        shares[k] += 1
    return shares
