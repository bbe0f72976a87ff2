"""Batch arithmetic: rows per step = micro × accumulation × dp, exactly, unless a run must go on.

A run that began on 32 ranks and goes on with 24 keeps its rows, whether 24 can share them evenly or not. The
last ranks then have empty places; the engine fills them with rows that are not trained on, and the loss
stays the mean over the tokens of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

# Tokens of one micro-batch beyond which a bigger one no longer makes a step faster.
TOKENS_PER_MICRO = {"cuda": 16384, "cpu": 4096}
# A pipeline of p stages idles (p-1)/(m+p-1) of the time with m micro-batches: below 1/5 from m = 4p on.
MICRO_BATCHES_PER_STAGE = 4


@dataclass(frozen=True)
class BatchPlan:
    """`rows` per optimizer step over all ranks = `micro` per rank and forward × `accumulation` × `dp`.

    A run that goes on in another world may have fewer rows than such places; the last ones are empty.
    """

    rows: int
    micro: int
    accumulation: int
    dp: int

    def __post_init__(self) -> None:
        assert 0 < self.rows <= self.places, f"rows don't add up: {self}"

    @property
    def places(self) -> int:
        """Rows that the ranks compute in one step, empty ones too."""
        return self.micro * self.accumulation * self.dp

    @property
    def split(self) -> str:
        """How the ranks share a step, in words."""
        said = f"micro {self.micro} × accumulation {self.accumulation} × {self.dp} data-parallel ranks"
        empty = self.places - self.rows
        if empty:
            share = self.micro * self.accumulation
            said += f", {share} places each: {empty} of {self.places} are empty ({empty / self.places:.0%})"
        return said


def divisors(number: int) -> list[int]:
    """All divisors of `number`, ascending."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n != number]


def nearest_multiples(number: int, factor: int) -> tuple[int, ...]:
    """The multiples of `factor` next to `number`, below (when there is one) and above."""
    below = number // factor * factor
    return tuple(n for n in (below, below + factor) if n > 0)


def nearest_values(number: int, allowed: list[int]) -> tuple[int, ...]:
    """The allowed values next to `number`, below and above where there are such."""
    below = [n for n in allowed if n < number]
    above = [n for n in allowed if n > number]
    return tuple(below[-1:] + above[:1])


def plan_batch(
    rows: int,
    dp: int,
    *,
    micro: int | None = None,
    accumulation: int | None = None,
    seq_len: int = 1024,
    pipeline: int = 1,
    device: str = "cuda",
    most_rows: int | None = None,
    pads: bool = False,
) -> tuple[BatchPlan, str]:
    """The batch and, in words, why `micro` is what it is.

    micro, accumulation: given by the user, or None to be chosen; most_rows: the rows of a micro-batch that
    fit in memory, when known; pads: what doesn't divide gets empty places, in as few micro-batches as can be
    (`micro` is then the most that one may have). Without it that raises ValueError, with numbers that work.
    """
    share = -(-rows // dp)
    if rows % dp and not pads:
        works = " or ".join(map(str, nearest_multiples(rows, dp)))
        raise ValueError(f"{rows} rows can't be shared by {dp} data-parallel ranks; use {works} rows")
    if micro is not None:
        if share % micro and not pads:
            works = " or ".join(map(str, nearest_values(micro, divisors(share))))
            raise ValueError(
                f"{share} rows of a rank don't divide into micro-batches of {micro}; use {works}"
            )
        return _within(rows, dp, micro), "given"
    if accumulation is not None:
        if share % accumulation and not pads:
            works = " or ".join(map(str, nearest_values(accumulation, divisors(share))))
            raise ValueError(
                f"{share} rows of a rank don't divide into {accumulation} micro-batches; use {works}"
            )
        return BatchPlan(rows, -(-share // accumulation), accumulation, dp), "rows ÷ ranks ÷ accumulation"
    limits = [
        (max(1, TOKENS_PER_MICRO[device] // seq_len), f"{TOKENS_PER_MICRO[device]} tokens a micro-batch")
    ]
    if most_rows is not None:
        limits.append((max(1, most_rows), f"memory for {most_rows} rows"))
    if pipeline > 1:
        wanted = MICRO_BATCHES_PER_STAGE * pipeline
        limits.append((max(1, share // wanted), f"{wanted} micro-batches for {pipeline} stages"))
    limit, why = min(limits)
    if rows % dp:
        return _within(rows, dp, limit), f"auto: fewest micro-batches of {share} rows within {why}"
    chosen = max(n for n in divisors(share) if n <= limit)
    reason = "all of a rank's rows" if chosen == share else f"largest divisor of {share} rows within {why}"
    return _within(rows, dp, chosen), f"auto: {reason}"


def _within(rows: int, dp: int, most: int) -> BatchPlan:
    """The fewest micro-batches of at most `most` rows, all as small as that lets them be."""
    share = -(-rows // dp)
    accumulation = -(-share // most)
    return BatchPlan(rows, -(-share // accumulation), accumulation, dp)
