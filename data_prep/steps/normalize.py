"""Text in one form: Unicode, line ends, white space and control characters; what is changed is counted."""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Literal

from pydantic import field_validator

from data_prep.documents import Document, Tally
from data_prep.steps.step import Step
from llmtrain.config.schema import Section

_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CONTROLS = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]"
)  # neither blank nor line end
_MANY_BLANK_LINES = re.compile(r"\n{3,}")
_BLANKS = re.compile(r"[^\S\n]+")


class Normalize(Section):
    """Every change is one of these, made in this order.

    fix_encoding  text decoded wrongly (`Ã©` for `é`) is put right by ftfy, of the extra `encoding`
    form          the Unicode form; NFKC also makes `ﬁ` two letters and `²` a 2
    line_ends     lf: every line end is one line feed
    controls      drop: control characters, byte order marks and non-characters go
    whitespace    trim: no white space at the ends of lines and of the text, one blank line at most;
                  collapse: within lines, one space at most, too
    """

    fix_encoding: bool = False
    form: Literal["NFC", "NFKC", "none"] = "NFC"
    line_ends: Literal["lf", "keep"] = "lf"
    controls: Literal["drop", "keep"] = "drop"
    whitespace: Literal["trim", "collapse", "keep"] = "trim"

    @field_validator("fix_encoding")
    @classmethod
    def _has_ftfy(cls, wanted: bool) -> bool:
        if wanted and importlib.util.find_spec("ftfy") is None:
            raise ValueError("needs ftfy: pip install ftfy, or leave it out")
        return wanted


def make(settings: Normalize) -> Step:
    """The step with these settings. A text of which nothing is left is dropped."""
    changes = _changes(settings)

    def change(documents: Iterator[Document], tally: Tally) -> Iterator[Document]:
        for document in documents:
            for what, changed in changes:
                text = changed(document.text)
                if text != document.text:
                    tally.find(f"normalize: documents with {what}")
                    document.text = text
            if document.text and not document.text.isspace():
                yield document
            else:
                tally.drop("normalize: nothing left", document.id)

    return change


def _changes(settings: Normalize) -> list[tuple[str, Callable[[str], str]]]:
    changes: list[tuple[str, Callable[[str], str]]] = []
    if settings.fix_encoding:
        import ftfy

        changes.append(("mended encoding", ftfy.fix_encoding))
    form = settings.form
    if form != "none":
        changes.append((f"changed Unicode form ({form})", lambda text: unicodedata.normalize(form, text)))
    if settings.line_ends == "lf":
        changes.append(("changed line ends", lambda text: _LINE_ENDS.sub("\n", text)))
    if settings.controls == "drop":
        changes.append(("dropped control characters", lambda text: _CONTROLS.sub("", text)))
    if settings.whitespace == "collapse":
        changes.append(("changed white space", lambda text: _trim(_BLANKS.sub(" ", text))))
    elif settings.whitespace == "trim":
        changes.append(("changed white space", _trim))
    return changes


def _trim(text: str) -> str:
    """Indentation stays, that of the first line too."""
    lines = "\n".join(map(str.rstrip, text.split("\n")))
    return _MANY_BLANK_LINES.sub("\n\n", lines).strip("\n")
