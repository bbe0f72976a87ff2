"""How a filter of documents works: it judges each, and drops those it finds a reason against."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from data_prep.documents import Document, Tally
from data_prep.steps.features import groups_with_features
from data_prep.steps.step import Step
from llmtrain.config.schema import Section

_CODE = re.compile(
    r".*\.(ada|asm|bash|bat|c|cc|cfg|clj|cmake|cpp|cs|css|cu|cxx|d|dart|diff|el|erl|ex|exs|f|f90|go|gradle"
    r"|groovy|h|hh|hpp|hs|html|ini|ipynb|java|jl|js|json|jsx|kt|lisp|lua|m|mjs|ml|nim|pas|patch|php|pl|pm"
    r"|proto|ps1|py|pyi|pyx|r|rb|rs|scala|scm|sh|sql|sv|swift|tcl|toml|ts|tsx|v|vb|vhd|vue|xml|yaml|yml|zig)"
    r"(\.(gz|zst|bz2|xz))?",
    re.IGNORECASE | re.DOTALL,
)


class Filter(Section):
    """What all filters have in common. `exempt_code` lets code pass: prose is what their rules describe."""

    exempt_code: bool = False


Verdict = Callable[[Document, Tally], str | None]  # the rule against a document, None when there is none


def judging(name: str, settings: Filter, verdict: Verdict) -> Step:
    """The step that drops each document with `verdict`'s rule as the reason. A verdict finds its features."""

    def keep(documents: Iterator[Document], tally: Tally) -> Iterator[Document]:
        for document in (one for group in groups_with_features(documents) for one in group):
            if settings.exempt_code and is_code(document):
                tally.find(f"{name}: code, exempt")
                yield document
                continue
            rule = verdict(document, tally)
            if rule is None:
                yield document
            else:
                tally.drop(f"{name}: {rule}", document.id)

    return keep


def is_code(document: Document) -> bool:
    """Code by its `kind` in the metadata, or by the suffix of its `path` there or of the file it is in."""
    kind = document.meta.get("kind")
    if kind is not None:
        return bool(kind == "code")
    return _CODE.fullmatch(str(document.meta.get("path") or document.file)) is not None
