"""Union-find over the documents of a corpus, in files: the system may write its pages back at any time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

_PART = 2**18  # documents looked at together


class Clusters:
    """Documents 0 to `count` - 1, each a cluster of its own until joined. A cluster is named by its first."""

    def __init__(self, folder: Path, count: int):
        folder.mkdir()
        self.count = count
        self._parents = _mapped(folder / "parents", count)
        self._sizes = _mapped(folder / "sizes", count)
        for part in self._parts():
            self._parents[part] = np.arange(part.start, part.stop)

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        """Makes one cluster of each pair's two."""
        while first.size:
            first, second = self._firsts(first), self._firsts(second)
            apart = first != second
            first, second = first[apart], second[apart]
            # of several pairs that would hang one cluster elsewhere one wins; the others go on from there
            np.minimum.at(self._parents, np.maximum(first, second), np.minimum(first, second))

    def later(self, documents: range) -> np.ndarray:
        """Which of these stand behind another document of their cluster. Counts the clusters' sizes."""
        later = np.zeros(len(documents), bool)
        for begin in range(documents.start, documents.stop, _PART):
            some = np.arange(begin, min(begin + _PART, documents.stop))
            firsts = self._firsts(some)
            np.add.at(self._sizes, firsts, 1)
            later[begin - documents.start :][: some.size] = firsts != some
        return later

    def describe(self) -> dict[str, Any]:
        """How many clusters of two and more, of which sizes, and what goes; after `later` of all."""
        found: dict[int, int] = {}
        for part in self._parts():
            sizes, counts = np.unique(self._sizes[part], return_counts=True)
            for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
                if size > 1:
                    found[size] = found.get(size, 0) + count
        sizes_by_power: dict[str, int] = {}
        for size, count in sorted(found.items()):
            low = 1 << (size - 1).bit_length() - 1
            name = "2" if size == 2 else f"{low + 1}-{2 * low}"
            sizes_by_power[name] = sizes_by_power.get(name, 0) + count
        return {
            "clusters": sum(found.values()),
            "duplicates": sum((size - 1) * count for size, count in found.items()),
            "largest_cluster": max(found, default=0),
            "cluster_sizes": sizes_by_power,
        }

    def _firsts(self, documents: np.ndarray) -> np.ndarray:
        """The first document of each one's cluster, and the way there made short."""
        firsts = self._parents[documents]
        while True:
            above = self._parents[firsts]
            if (above == firsts).all():
                break
            firsts = above
        self._parents[documents] = firsts
        return np.asarray(firsts)

    def _parts(self) -> list[slice]:
        return [slice(begin, min(begin + _PART, self.count)) for begin in range(0, self.count, _PART)]


def _mapped(path: Path, count: int) -> np.ndarray:
    """Zeros in a file. An empty file can't be mapped."""
    return np.memmap(path, np.int64, "w+", shape=(count,)) if count else np.zeros(0, np.int64)
