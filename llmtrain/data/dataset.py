"""One split of a dataset folder as one long stream of tokens, whatever shards it lies in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmtrain.data.manifest import TOKENIZER, Manifest, SplitEntry, read_manifest
from llmtrain.data.shards import REBUILD, TRAINED, Shard
from llmtrain.errors import DataError, nearest

if TYPE_CHECKING:
    from llmtrain.data.too_long import Excess
_SAMPLED = 1 << 20  # tokens that tell how turns end where the manifest does not
_OFTEN = 0.05  # of all turns: more than are cut in their midst


class Dataset:
    """The token stream of one split: documents in order, shard after shard.

    ends    int64 [documents with tokens]: where each document ends in the stream (exclusive), rising
    excess  which of its documents were longer than a row, where something was done about them
    """

    excess: Excess | None = None

    def __init__(self, folder: Path, split: str, manifest: Manifest, shards: tuple[Shard, ...]):
        self.folder = folder
        self.split = split
        self.manifest = manifest
        self.shards = shards
        self._starts = np.cumsum([0, *(len(shard.tokens) for shard in shards)])
        ends = [shard.ends + start for shard, start in zip(shards, self._starts[:-1], strict=True)]
        self.ends = np.unique(np.concatenate(ends)) if ends else np.zeros(0, np.int64)
        if len(self.ends) and self.ends[0] == 0:  # documents without a token end where they start
            self.ends = self.ends[1:]

    @property
    def fingerprint(self) -> str:
        """Which tokens these are: the folder's fingerprint and the split."""
        return f"{self.manifest.fingerprint}:{self.split}"

    @property
    def tokens(self) -> int:
        """Tokens in the stream."""
        return int(self._starts[-1])

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to one below this."""
        return self.manifest.vocab_size

    @property
    def eos_id(self) -> int:
        """The id that ends a document."""
        return self.manifest.tokenizer.eos_id

    @property
    def turn_ends(self) -> list[int]:
        """The ids that end a turn that is learnt; those of an older manifest are read off the masks."""
        said = self.manifest.turn_ends
        if said or not self.masked or not self.tokens:
            return sorted(said.values())
        size = np.array([min(self.tokens, _SAMPLED)])
        tokens, mask = self.windows(size * 0, size)[0], self.masks(size * 0, size)[0]
        lasts = tokens[(mask == 1) & (np.append(mask[1:], 0) == 0)]  # a document's first is never marked
        ids, counts = np.unique(lasts, return_counts=True)
        often = set(ids[counts >= _OFTEN * len(lasts)].tolist())
        return sorted(often & set(self.manifest.tokenizer.special.values()))

    @property
    def tokenizer_folder(self) -> Path:
        """A folder that `transformers.AutoTokenizer` loads."""
        return self.folder / TOKENIZER

    @property
    def masked(self) -> bool:
        """True when only the tokens that the masks name are trained on."""
        return self.manifest.masked

    @property
    def entry(self) -> SplitEntry:
        """What the manifest says of this split."""
        return self.manifest.splits[self.split]

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token over the whole split, document ends included."""
        return self.entry.text_bytes / max(self.entry.tokens, 1)

    def pieces(self, start: int, stop: int) -> list[np.ndarray]:
        """Tokens `start` … `stop` of the stream as views of the mapped shards, one per shard touched."""
        return self._pieces([shard.tokens for shard in self.shards], start, stop)

    def _pieces(self, arrays: list[np.ndarray], start: int, stop: int) -> list[np.ndarray]:
        first, last = np.searchsorted(self._starts, (start, stop - 1), side="right") - 1
        return [
            arrays[k][max(0, start - int(self._starts[k])) : stop - int(self._starts[k])]
            for k in range(first, last + 1)
        ]

    def windows(self, starts: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """`lengths` (≥ 1) tokens from `starts`: views of the mapped shards, a copy where one ends inside."""
        return self._windows([shard.tokens for shard in self.shards], starts, lengths)

    def masks(self, starts: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """As `windows`, of a masked dataset's marks: 1 where the token there is trained on."""
        return [marks & TRAINED for marks in self._windows(self._marks, starts, lengths)]

    def marks(self, start: int, length: int) -> np.ndarray:
        """The bytes of a masked dataset's mask, all bits of them."""
        return self._windows(self._marks, np.array([start]), np.array([length]))[0]

    @property
    def _marks(self) -> list[np.ndarray]:
        marks = [shard.mask for shard in self.shards if shard.mask is not None]
        assert len(marks) == len(self.shards), f"{self.folder} has no masks"
        return marks

    def _windows(self, arrays: list[np.ndarray], starts: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        first = np.searchsorted(self._starts, starts, side="right") - 1
        inside = starts + lengths <= self._starts[first + 1]
        offsets = starts - self._starts[first]
        return [
            arrays[shard][offset : offset + length]
            if whole
            else np.concatenate(self._pieces(arrays, start, start + length))
            for shard, offset, length, whole, start in zip(
                first.tolist(),
                offsets.tolist(),
                lengths.tolist(),
                inside.tolist(),
                starts.tolist(),
                strict=True,
            )
        ]


def open_dataset(path: str | Path, split: str, hashes: bool = False) -> Dataset:
    """Opens one split of a dataset folder; sizes and counts are always checked, contents with `hashes`.

    Raises DataError naming the file and the fix.
    """
    folder = Path(path)
    manifest = read_manifest(folder, hashes)
    if split not in manifest.splits:
        known = ", ".join(sorted(manifest.splits))
        hint = nearest(split, manifest.splits)
        raise DataError(f"{folder} has no split '{split}' ({known}) {hint}".strip())
    shards = []
    for entry in manifest.splits[split].shards:
        shard = Shard(folder / entry.name, manifest.masked)
        if (shard.documents, len(shard.tokens)) != (entry.documents, entry.tokens):
            raise DataError(
                f"{shard.prefix}.idx holds {shard.documents} documents and {len(shard.tokens)} tokens, "
                f"the manifest says {entry.documents} and {entry.tokens}: {REBUILD}"
            )
        if shard.dtype != manifest.numpy_dtype:
            raise DataError(f"{shard.prefix}.idx is not {manifest.dtype} as the manifest says: {REBUILD}")
        shards.append(shard)
    return Dataset(folder, split, manifest, tuple(shards))
