"""What a build says besides its figures: what to know before training on the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data_prep.corpus import CorpusConfig
from data_prep.engines import NOT_INSTALLED, Reference
from data_prep.sources import Source
from data_prep.write import Written
from llmtrain.data.pointers import POINTER

SHOWN = 3  # names of one kind


def notes_of(
    corpus: CorpusConfig, sources: Sequence[Source], written: Written, engine: str
) -> tuple[str, ...]:
    """Sentences about sources that gave nothing, files that are misnamed, and a slow engine."""
    return (*_nothing(corpus, written), *_misnamed(sources), *_slow(engine))


def _nothing(corpus: CorpusConfig, written: Written) -> Iterator[str]:
    """Each source of which everything was left out, by what."""
    for section, flow in zip(corpus.sources, written.statistics.sources, strict=True):
        if flow.documents or not flow.documents_in:
            continue
        reasons = sorted(flow.left_out.items(), key=lambda item: (-item[1], item[0]))
        most = ", ".join(f"{count:,} {reason}" for reason, count in reasons[:SHOWN])
        more = f" and {len(reasons) - SHOWN} more reasons" if len(reasons) > SHOWN else ""
        yield (
            f"NOTHING of {section.label} is in the dataset: all its {flow.documents_in:,} documents were "
            f"left out ({most}{more})"
        )


def _misnamed(sources: Sequence[Source]) -> Iterator[str]:
    kinds: dict[str, list[str]] = {}
    for file in (file for source in sources for file in source.files):
        if file.really and file.really != POINTER:
            kinds.setdefault(file.really, []).append(file.name)
    for kind, names in kinds.items():
        more = f" (and {len(names) - SHOWN} more)" if len(names) > SHOWN else ""
        one = len(names) == 1
        yield (
            f"{', '.join(names[:SHOWN])}{more} {'is a' if one else 'are'} {kind} file{'' if one else 's'} by "
            f"{'its' if one else 'their'} first bytes, and {'was' if one else 'were'} unpacked"
        )


def _slow(engine: str) -> Iterator[str]:
    if engine.startswith(Reference.name) and NOT_INSTALLED in engine:
        yield (
            "tokenized by `tokenizers` alone, about ten times slower than by gigatoken or tiktoken: "
            "pip install gigatoken tiktoken (the ids are the same)"
        )
