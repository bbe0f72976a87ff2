"""What is allowed and hardly meant: said by `plan` and at the start of a run, which goes on."""

from __future__ import annotations

from llmtrain.data.batches import Batches
from llmtrain.plan.plan import Plan

MOST_TOKENS = 2**26  # of one step; the largest published batches have some 60 million
MOST_MICRO_BATCHES = 1024  # that a rank makes before the weights move once


def advice(plan: Plan, batches: Batches | None = None) -> list[str]:
    """A sentence for each value that is probably a slip; `batches` where the data is there."""
    batch, tokens = plan.batch, plan.tokens_per_step
    rows = f"batch.rows = {batch.rows:,} ({plan.origins.get('batch.rows', 'default')})"
    found = []
    if tokens > MOST_TOKENS:
        found.append(
            f"{rows} makes steps of {tokens:,} tokens, more than any published model was trained with: "
            "batch.rows counts rows, not tokens"
        )
    if batch.accumulation > MOST_MICRO_BATCHES:
        waits = "" if plan.topology.pipeline == 1 else "; in a pipeline a stop request waits for all of them"
        found.append(
            f"{rows}: each rank makes {batch.accumulation:,} micro-batches of {batch.micro} before the "
            f"weights move once{waits}"
        )
    if batches is not None and batch.rows > batches.rows_per_epoch:
        times = batch.rows / batches.rows_per_epoch
        have = f"all data together has {batches.rows_per_epoch:,}"
        found.append(f"{rows}, and {have}: each step repeats rows, {times:.1f} times on average")
    return found
