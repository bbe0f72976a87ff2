"""The report as one page that needs nothing else: no script, no network; in light, in dark, and on paper."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from data_prep.charts import bar, columns
from data_prep.markup import Markup, join, tag
from data_prep.report_style import STYLE

MOST_LANGUAGES = 20
SAFE = "default-src 'none'; style-src 'unsafe-inline'"
Row = Mapping[str, Any]


def page(report: Row) -> str:
    """The whole page."""
    content, times = report["content"], report["times"]
    body = (
        _head(content),
        _totals(content, times),
        _section("Notes", [tag("p", note) for note in report["notes"]]),
        _section("What became of the documents", _funnel(content)),
        _section("Lengths", _lengths(content["lengths"])),
        _section("Languages", _languages(content["languages"])),
        _section("Duplicates", _duplicates(content["duplicates"])),
        _section("Personal data", _personal(content)),
        _section("Other findings", _other(content["found"])),
        _section("Sources and mixture", _sources(content["sources"])),
        _section("Splits and tokenizer", _splits(content)),
        _section("Time", _time(times)),
    )
    head = (
        tag("title", f"{content['name']}: data report"),
        Markup(
            '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f'<meta http-equiv="Content-Security-Policy" content="{SAFE}">'
            f"<style>{STYLE}</style>"
        ),
    )
    whole = tag("html", tag("head", head[1], head[0]), tag("body", tag("main", body)), lang="en")
    return f"<!DOCTYPE html>\n{whole}\n"


def _section(title: str, content: Any) -> Markup | None:
    return tag("section", tag("h2", title), content) if content else None


def _head(content: Row) -> Markup:
    tokenizer = content["tokenizer"]
    about = [f"kind {content['kind']}", f"tokenizer {tokenizer['name']}, {tokenizer['vocab_size']:,} ids"]
    about += [content["created_by"], f"fingerprint {content['fingerprint'][:16]}"]
    return tag(
        "header", tag("p", "Dataset", class_="over"), tag("h1", content["name"]), tag("p", " · ".join(about))
    )


def _totals(content: Row, times: Row) -> Markup:
    documents, size, tokens = (content[key] for key in ("documents", "bytes", "tokens"))
    written = documents["out"] + documents["copies"]
    kept = [
        (
            "documents",
            f"{documents['out']:,}",
            f"of {documents['in']:,}, {_share(documents)}{_copies(documents, written, _number)}",
        ),
        (
            "text",
            _bytes(size["out"]),
            f"of {_bytes(size['in'])}, {_share(size)}{_copies(documents, size['with_copies'], _bytes)}",
        ),
        (
            "tokens",
            _count(tokens["out"]),
            f"of about {_count(tokens['in_estimate'])}{_copies(documents, tokens['with_copies'], _count)}",
        ),
    ]
    ratio = size["out"] / tokens["out"] if tokens["out"] else 0
    kept.append(("bytes per token", f"{ratio:.2f}", content["tokenizer"]["engine"]))
    about = [f"{times['workers']} worker" + "s" * (times["workers"] != 1)]
    for size, what in ((times["read_bytes"], "read"), (times["text_bytes"], "of text out")):
        if size and times["seconds"]:
            about.append(f"{size / times['seconds'] / 1e6:.2f} MB/s {what}")
    kept.append(("time", _duration(times["seconds"]), ", ".join(about)))
    boxes = [tag("div", tag("dt", name), tag("dd", value), tag("small", more)) for name, value, more in kept]
    return tag("dl", boxes, class_="totals")


def _copies(documents: Row, written: int, shown: Callable[[int], str]) -> str:
    return f"; {shown(written)} with copies" if documents["copies"] else ""


def _funnel(content: Row) -> list[Markup]:
    steps, documents = content["steps"], content["documents"]
    whole = max(documents["in"], 1)
    rows = []
    for step in steps:
        came, dropped = step["documents_in"], step["dropped"]
        cells = _number(came), _number(dropped), _percent(dropped, came), bar((came - dropped) / whole)
        asked = [tag("code", json.dumps(each, ensure_ascii=False)) for each in step["settings"] if each]
        rows.append(_row([step["step"], tag("small", asked, class_="where")], *cells, class_="step"))
        for reason in step["reasons"]:
            count = reason["documents"]
            where = [tag("code", example) for example in reason["examples"]]
            name = [reason["reason"].removeprefix(f"{step['step']}: "), tag("small", where, class_="where")]
            cells = "", _number(count), _percent(count, came), bar(count / whole, "lost")
            rows.append(_row(name, *cells, class_="reason"))
    rows.append(_row("kept", _number(documents["out"]), "", "", bar(documents["out"] / whole), class_="step"))
    note = (
        "Every document that came in is kept or left out for one reason. Bars are shares of all documents: "
    )
    return [
        tag("p", note, "what a step lets through, and below it what it left out and why."),
        _table(("step and reason", "documents in", "left out", "share", ""), rows),
    ]


def _lengths(lengths: Row) -> list[Markup] | None:
    bins = lengths["bins"]
    if not bins:
        return None
    labels = [_short(each["from"]) for each in bins]
    charts = []
    for unit in ("documents", "tokens"):
        hints = [f"{each['from']:,} to {each['to']:,} tokens: {each[unit]:,} {unit}" for each in bins]
        values = [each[unit] for each in bins]
        says = f"{unit} by length in tokens"
        charts.append(tag("figure", tag("figcaption", says), columns(values, labels, hints, says)))
    means = f"A document has {lengths['mean']:,.0f} tokens on average, the longest {lengths['longest']:,}. "
    how = "Each column is for lengths from its label up to twice that."
    return [tag("p", means, how), tag("div", charts, class_="pair")]


def _languages(languages: Sequence[Row]) -> Markup | None:
    if not any(each["language"] for each in languages):
        return None
    total = sum(each["documents"] for each in languages)
    rest = languages[MOST_LANGUAGES:]
    shown = list(languages[:MOST_LANGUAGES])
    if rest:
        sums = {key: sum(each[key] for each in rest) for key in ("documents", "bytes", "tokens")}
        shown.append({"language": f"{len(rest)} others"} | sums)
    rows = [
        _row(
            each["language"] or "unknown",
            _number(each["documents"]),
            _percent(each["documents"], total),
            bar(each["documents"] / total),
            _bytes(each["bytes"]),
            _count(each["tokens"]),
            f"{each['bytes'] / max(each['tokens'], 1):.2f}",
        )
        for each in shown
    ]
    return _table(("language", "documents", "share", "", "text", "tokens", "bytes/token"), rows)


def _duplicates(duplicates: Sequence[Row]) -> list[Markup]:
    parts = []
    for each in duplicates:
        facts = ", ".join(
            f"{name.replace('_', ' ')} {value:,}"
            for name, value in each.items()
            if isinstance(value, int) and not isinstance(value, bool)
        )
        share = f"{each['share_dropped']:.2%} of what was compared is left out: "
        parts.append(tag("p", tag("strong", each["step"]), " ", share, facts, "."))
        sizes = each.get("cluster_sizes")
        if sizes:
            most = max(sizes.values())
            rows = [_row(size, _number(count), bar(count / most)) for size, count in sizes.items()]
            parts.append(_table(("documents in a cluster", "clusters", ""), rows))
    return parts


def _personal(content: Row) -> Markup | None:
    found = content["personal_data"]
    if not found:
        return None
    most = max(found.values())
    per = max(content["documents"]["out"], 1)
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    rows = [
        _row(kind, _number(count), f"{1000 * count / per:.2f}", bar(count / most)) for kind, count in ordered
    ]
    return _table(("kind", "found", "per 1,000 documents kept", ""), rows)


def _other(found: Row) -> Markup | None:
    rows = [
        _row(what, _number(count))
        for what, count in found.items()
        if not what.startswith(("pii: ", "presidio: "))
    ]
    return _table(("what", "count"), rows) if rows else None


def _sources(sources: Sequence[Row]) -> Markup:
    rows = [
        _row(
            each["source"],
            f"{each['weight']:g}",
            _number(each["documents_in"]),
            _bytes(each["bytes_in"]),
            _number(each["documents"]),
            _bytes(each["bytes"]),
            _count(each["tokens"]),
            f"{each['share_of_tokens']:.1%}",
            bar(each["share_of_tokens"]),
        )
        for each in sources
    ]
    names = (
        "source",
        "weight",
        "documents in",
        "text in",
        "documents",
        "text",
        "tokens",
        "of all tokens",
        "",
    )
    return _table(names, rows)


def _splits(content: Row) -> list[Markup]:
    trained = any("trained_tokens" in split for split in content["splits"].values())
    rows = [
        _row(
            name,
            _number(split["documents"]),
            _bytes(split["bytes"]),
            _number(split["tokens"]),
            f"{split['bytes_per_token']:.3f}",
            *([_number(split["trained_tokens"])] if trained else []),
        )
        for name, split in content["splits"].items()
    ]
    names = ("split", "documents", "text", "tokens", "bytes/token", *(["trained tokens"] if trained else []))
    tokenizer = content["tokenizer"]
    about = f"{tokenizer['name']}: {tokenizer['vocab_size']:,} ids stored as {tokenizer['dtype']}, end mark "
    return [_table(names, rows), tag("p", about, tag("code", tokenizer["eos"]), f", {tokenizer['engine']}.")]


def _time(times: Row) -> list[Markup]:
    whole = times["seconds"] or 1
    stages = [
        _row(
            each["stage"],
            f"{each['seconds']:,.2f}",
            _percent(each["seconds"], whole),
            bar(each["seconds"] / whole),
        )
        for each in times["by_stage"]
    ]
    parts = [
        tag("p", "Seconds of the clock, by stage of the build."),
        _table(("stage", "seconds", "share", ""), stages),
    ]
    steps = [(f"pass {each['pass'] + 1}", each["step"], each["seconds"]) for each in times["by_step"]]
    steps += [("between passes", f"{each['step']}: deciding", each["seconds"]) for each in times["deciding"]]
    total = sum(seconds for *_, seconds in steps)
    steps.sort(key=lambda each: -each[2])
    rows = [
        _row(step, when, f"{seconds:,.2f}", _percent(seconds, total), bar(seconds / total))
        for when, step, seconds in steps
        if total
    ]
    if rows:
        parts.append(tag("p", "Seconds of all workers together in the passes, by what they were spent on."))
        parts.append(_table(("step", "", "seconds", "share", ""), rows))
    return parts


def _table(names: Sequence[str], rows: Iterable[Markup]) -> Markup:
    head = tag("thead", tag("tr", [tag("th", name) for name in names]))
    return tag("div", tag("table", head, tag("tbody", list(rows))), class_="wide")


def _row(*cells: Any, class_: str | None = None) -> Markup:
    return tag("tr", [tag("td", join(cell)) for cell in cells], class_=class_)


def _number(count: int) -> str:
    return f"{count:,}"


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _share(pair: Row) -> str:
    return _percent(pair["out"], pair["in"]) or "none"


def _scaled(value: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if value < 1000:
            return f"{value:.3g}{unit}" if unit.strip() else f"{value:.0f}{unit}"
        value /= 1000
    return f"{value:,.3g}{units[-1]}"


def _bytes(count: float) -> str:
    return _scaled(count, (" B", " kB", " MB", " GB", " TB"))


def _count(count: float) -> str:
    return _scaled(count, ("", " k", " M", " G", " T"))


def _short(power: int) -> str:
    return f"{power}" if power < 1024 else f"{power // 1024}k" if power < 2**20 else f"{power >> 20}M"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    return f"{hours} h {minutes % 60:02d} min" if hours else f"{minutes} min {int(seconds) % 60:02d} s"
