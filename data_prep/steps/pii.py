"""Personal data and keys: masked, or reported, or the document dropped. Each kind as asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from data_prep.documents import Document, Tally
from data_prep.steps.pii_find import Finder, masked
from data_prep.steps.step import Step
from llmtrain.config.schema import Section

Mode = Literal["mask", "drop", "report", "ignore"]
Country = Literal["es", "br", "pl", "it", "nl", "fr", "se", "ch", "us"]

KINDS = ("email", "phone", "ip", "iban", "credit_card", "national_id", "secret")


class Pii(Section):
    """What becomes of each kind: mask, drop (the document), report (count only) or ignore.

    mode           of the kinds that are not named
    placeholders   by kind, the text in its place; default <EMAIL>, <CREDIT_CARD>, …
    private_ips    addresses of private networks too
    national_ids   countries; all but us have a check digit
    """

    mode: Mode = "mask"
    email: Mode | None = None
    phone: Mode | None = None
    ip: Mode | None = None
    iban: Mode | None = None
    credit_card: Mode | None = None
    national_id: Mode | None = None
    secret: Mode | None = None
    placeholders: dict[str, str] = Field(default_factory=dict)
    private_ips: bool = False
    national_ids: tuple[Country, ...] = ("es", "br", "pl", "it", "nl", "fr", "se", "ch")

    @model_validator(mode="after")
    def _known_placeholders(self) -> Pii:
        unknown = sorted(set(self.placeholders) - set(KINDS))
        if unknown:
            raise ValueError(f"placeholders has no kind '{unknown[0]}': choose from {', '.join(KINDS)}")
        return self

    def modes(self) -> dict[str, Mode]:
        """What becomes of every kind that is looked for."""
        chosen = {kind: getattr(self, kind) or self.mode for kind in KINDS}
        return {kind: mode for kind, mode in chosen.items() if mode != "ignore"}


def make(settings: Pii) -> Step:
    """The step with these settings."""
    modes = settings.modes()
    placeholders = {kind: settings.placeholders.get(kind, f"<{kind.upper()}>") for kind in modes}
    finder = Finder(frozenset(modes), settings.private_ips, settings.national_ids)

    def clean(documents: Iterator[Document], tally: Tally) -> Iterator[Document]:
        for document in documents:
            spans = finder(document.text)
            for span in spans:
                tally.find(f"pii: {span.kind}")
            fatal = next((span.kind for span in spans if modes[span.kind] == "drop"), None)
            if fatal is not None:
                tally.drop(f"pii: {fatal}", document.id)
                continue
            hidden = [span for span in spans if modes[span.kind] == "mask"]
            if hidden:
                document = dataclasses.replace(document, text=masked(document.text, hidden, placeholders))
            yield document

    return clean
