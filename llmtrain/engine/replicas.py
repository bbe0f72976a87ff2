"""Silent corruption: weights that several ranks hold alike are compared, and the rank that differs is named.

A checksum is the sum of a tensor's bits as whole numbers, which every single flipped bit changes. ZeRO-0 to
-2 hold the weights on every data parallel rank. ZeRO-1 and -2 write them anew from their owners' fp32 shards
in every update, so a flip in them lives for one step, and the owners can say which rank is wrong. Shards
(ZeRO-3's weights, masters and moments elsewhere) are held once and have nothing to be compared with.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from llmtrain.engine.seam import Comm, Slice
from llmtrain.engine.slices import NamedParameter

_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor's elements taken as whole numbers, modulo 2^64."""
    flat = tensor.detach().reshape(-1)
    return flat.view(_WHOLE[flat.element_size()]).sum(dtype=torch.int64)


def differing_replica(comm: Comm, dp: int, named: list[NamedParameter], masters: Iterable[Slice]) -> str:
    """A sentence that names the rank and a tensor, or an empty string; the same on every rank.

    Ranks `n·dp … n·dp + dp - 1` hold the same parameters. `masters` are this rank's fp32 shards, from which
    all copies are made; empty where there are none.
    """
    sums = torch.stack([checksum(entry.parameter) for entry in named]).tolist()
    mine = {entry.name: value for entry, value in zip(named, sums, strict=True)}
    column = comm.rank // dp * dp
    digest = hashlib.sha256(json.dumps(mine).encode()).hexdigest()
    digests = comm.gather(digest)
    if all(digests[rank] == digests[rank // dp * dp] for rank in range(comm.size)):
        return ""
    held: list[Any] = comm.gather(mine)
    peers = held[column : column + dp]
    names = [name for name in mine if len({peer[name] for peer in peers}) > 1]
    wrong, why = _against_masters(comm, dp, named, masters, names), "the fp32 copy of its owner"
    if not wrong:
        wrong, why = _minority(held, dp), "most of the ranks"
    seen: list[Any] = comm.gather(names[:1])
    name = next(found[0] for found in seen if found)
    if wrong:
        ranks = ", ".join(map(str, wrong))
        who = f"on rank {ranks} {name} is not what {why} say{'s' if 'copy' in why else ''} it is"
    else:
        first = next(rank for rank, found in enumerate(seen) if found)
        who = f"{name} differs between ranks {first} to {first + dp - 1}, and which is right can't be told"
    return (
        f"{who}: a weight was corrupted in memory or on the way. Nothing is saved from here on; look at that "
        "machine, then resume from the last checkpoint"
    )


def _against_masters(
    comm: Comm, dp: int, named: list[NamedParameter], masters: Iterable[Slice], names: list[str]
) -> list[int]:
    """The ranks whose copies of `names` are not what the owners' shards say."""
    copies = {entry.name: entry.parameter for entry in named}
    owned = [
        [
            piece.name,
            piece.start,
            piece.tensor.numel(),
            int(checksum(piece.tensor.to(copies[piece.name].dtype))),
        ]
        for piece in masters
        if piece.kind == "fp32" and piece.name in names
    ]
    shards: list[Any] = comm.gather(owned)
    column = comm.rank // dp * dp
    agrees = True
    for owner in shards[column : column + dp]:
        for name, start, length, value in owner:
            part = copies[name].detach().reshape(-1)[start : start + length]
            agrees = agrees and int(checksum(part)) == value
    return [rank for rank, answer in enumerate(comm.gather(agrees)) if not answer]


def _minority(held: list[dict[str, int]], dp: int) -> list[int]:
    """The ranks that hold what fewer than half of their peers hold."""
    wrong: set[int] = set()
    for column in range(0, len(held), dp):
        peers = held[column : column + dp]
        for name in peers[0]:
            (most, count), *others = Counter(peer[name] for peer in peers).most_common()
            if others and count * 2 > dp:
                wrong |= {column + index for index, peer in enumerate(peers) if peer[name] != most}
    return sorted(wrong)
