"""Block lists over the address a document came from, `meta["url"]`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import model_validator

from data_prep.documents import Document, Tally
from data_prep.steps.step import InputFile, Step
from llmtrain.config.schema import Section

_NO_WORD = re.compile(r"[\W_]+")


class Urls(Section):
    """Files with an entry a line; `#` begins a comment. At least one is given.

    domains  `example.com` blocks that host and every host below it
    urls     addresses; scheme, `www.`, fragment and a slash at the end make no difference
    words    block addresses that hold one of them as a whole word (`casino` in `/best-casino/`)
    """

    domains: InputFile | None = None
    urls: InputFile | None = None
    words: InputFile | None = None

    @model_validator(mode="after")
    def _some_list(self) -> Urls:
        if self.domains is None and self.urls is None and self.words is None:
            raise ValueError("names no list: give domains, urls or words")
        return self


def make(settings: Urls) -> Step:
    """The step with these settings. A document without an address passes."""
    domains = frozenset(_host(entry) for entry in _entries(settings.domains))
    urls = frozenset(_bare(entry) for entry in _entries(settings.urls))
    words = frozenset(entry.lower() for entry in _entries(settings.words))

    def rule_broken(url: str) -> str | None:
        host = _host(url)
        labels = host.split(".")
        if domains and any(".".join(labels[place:]) in domains for place in range(len(labels))):
            return "domain"
        if urls and _bare(url) in urls:
            return "address"
        if words and not words.isdisjoint(_NO_WORD.split(unquote(url).lower())):
            return "word in the address"
        return None

    def keep(documents: Iterator[Document], tally: Tally) -> Iterator[Document]:
        for document in documents:
            url = document.meta.get("url")
            if not url:
                tally.find("urls: document without an address")
                yield document
                continue
            rule = rule_broken(str(url))
            if rule is None:
                yield document
            else:
                tally.drop(f"urls: {rule}", document.id)

    return keep


def _entries(name: str | None) -> Iterator[str]:
    if name is None:
        return
    text = Path(name).expanduser().read_text(encoding="utf-8", errors="replace")
    for line in text.removeprefix("\ufeff").splitlines():
        entry = re.sub(r"(^|\s)#.*", "", line).strip()
        if entry:
            yield entry


def _host(url: str) -> str:
    """The host of an address, in the form it has on the wire; an empty text when there is none."""
    try:
        host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
    except ValueError:
        return ""
    host = host.rstrip(".")
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        return host


def _bare(url: str) -> str:
    """An address without what makes no difference."""
    rest = url.partition("#")[0].partition("//")[2] or url.partition("#")[0]
    host, slash, path = rest.partition("/")
    return (host.lower().removeprefix("www.") + slash + path).rstrip("/")
