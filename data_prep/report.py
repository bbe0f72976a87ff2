"""What a build did, as a value that can be printed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.chat.documents import NOTE
from data_prep.report_facts import PAGE
from llmtrain.data.dataset import open_dataset
from llmtrain.data.manifest import Manifest
from llmtrain.errors import DataError

ROW_LENGTHS = tuple(2**power for power in range(8, 18))


@dataclass(frozen=True)
class BuildReport:
    """A finished dataset. `seconds` is the wall time of this build, 0 when the folder was `reused`."""

    folder: str
    manifest: Manifest
    reused: bool
    seconds: float
    workers: int
    kept: int = 0  # chunks that an earlier build had done
    notes: tuple[str, ...] = ()  # what a person would want to know besides
    read_bytes: int = 0  # of the sources, as they lie; 0 when unknown

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of all text that was tokenized."""
        return sum(split.text_bytes for split in self.manifest.splits.values())

    @property
    def tokens(self) -> int:
        """Tokens written, over all splits."""
        return sum(split.tokens for split in self.manifest.splits.values())

    def render(self) -> str:
        """The report as plain text, without a final line end."""
        manifest, counts = self.manifest, self.manifest.counts
        how = "is up to date and was left as it is" if self.reused else f"built in {self.seconds:.1f} s"
        if self.seconds and not self.reused:
            hands = f"{self.workers} workers" if self.workers > 1 else "1 worker"
            if self.read_bytes:
                how += f", {_rate(self.read_bytes, self.seconds)} read"
            how += f", {_rate(self.text_bytes, self.seconds)} of text out, with {hands}"
        if self.kept:
            how += f", {self.kept:,} chunks of an earlier build kept"
        lines = [f"{self.folder} {how}", "", *(f"note: {note}" for note in self.notes)]
        lines += [""] if self.notes else []
        lines.append(f"{'':10}{'documents':>12}{'text MB':>12}{'tokens':>16}{'bytes/token':>14}")
        for name, split in manifest.splits.items():
            ratio = split.text_bytes / max(split.tokens, 1)
            size = split.text_bytes / 1e6
            lines.append(f"{name:10}{split.documents:>12,}{size:>12,.2f}{split.tokens:>16,}{ratio:>14.3f}")
        for name, split in manifest.splits.items():
            if split.trained_tokens is not None:
                share = split.trained_tokens / max(split.tokens, 1)
                lines.append(f"{name}: {split.trained_tokens:,} tokens are trained on, {share:.0%}")
                lines += self._lengths(name)
        lines += ["", f"{counts.documents_in:,} documents in = {counts.documents_out:,} out"]
        lines[-1] += f" + {sum(counts.rejected.values()):,} left out"
        if counts.repeats:
            lines.append(f"{counts.repeats:,} copies besides, for sources with a weight above 1")
        wide = max(map(len, counts.rejected), default=0)
        for reason, count in sorted(counts.rejected.items(), key=lambda item: -item[1]):
            shown = ", ".join(counts.examples.get(reason, ()))
            lines.append(
                f"  {count:>8,}  {reason:{wide}}  such as {shown}" if shown else f"  {count:>8,}  {reason}"
            )
        lines += [
            f"  {count:>8,}  {what.removeprefix(NOTE)}"
            for what, count in counts.found.items()
            if what.startswith(NOTE)
        ]
        lines += [f"  {'':>8}  {note}" for note in self.notes]
        tokenizer = manifest.tokenizer
        ends = "as their template ends them" if manifest.masked else "without a mark"
        if manifest.append_eos:
            ends = f"with {tokenizer.eos} (id {tokenizer.eos_id})"
        begin = "" if tokenizer.bos is None else f"begin with {tokenizer.bos} (id {tokenizer.bos_id}) and "
        lines.append(
            f"tokenizer {tokenizer.name}: {tokenizer.vocab_size:,} ids stored as {manifest.dtype}, "
            f"documents {begin}end {ends}"
        )
        lines.append(f"made by {tokenizer.engine}")
        lines.append(f"fingerprint {manifest.fingerprint}")
        page = Path(self.folder).expanduser() / PAGE
        if page.is_file():  # not beside datasets of older versions
            lines.append(f"more in {page}")
        return "\n".join(lines)

    def _lengths(self, split: str) -> Iterator[str]:
        """How many documents would be too long for rows of common lengths; nothing when all are short."""
        try:
            lengths = np.diff(open_dataset(Path(self.folder).expanduser(), split).ends, prepend=0)
        except DataError:  # not built here
            return
        if not len(lengths):
            return
        longest = int(lengths.max())
        rows = [size for size in ROW_LENGTHS if size < longest][-4:]
        counts = ", ".join(f"{int((lengths > size).sum()):,} of more than {size:,}" for size in rows)
        yield f"{split}: the longest document has {longest:,} tokens" + f"; {counts}" * bool(rows)


def _rate(size: int, seconds: float) -> str:
    return f"{size / 1e6:,.1f} MB ({size / seconds / 1e6:.2f} MB/s)"
