"""The same documents in every format that is read, and small archives with bad members."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import zstandard

from data_prep.corpus import SourceSection
from data_prep.documents import Document, Tally, parse
from data_prep.sources import Source, read_source, settle

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def source(path: Path | str, **options: object) -> Source:
    return settle(SourceSection(path=str(path), **options), 0, lambda _: None)


def read(path: Path | str, longest: int = 1 << 20, **options: object) -> tuple[list[Document], Tally]:
    """The documents of a source and the tally of reading it, as a build would have them."""
    found, tally = source(path, **options), Tally()
    documents: list[Document] = []
    for encoding, record in read_source(found, longest, lambda _: None):
        section = found.section
        documents += parse([record], encoding, section.field, tally, section.named_meta)
    tally.documents_out = len(documents)
    assert tally.documents_in == tally.documents_out + sum(tally.rejected.values())
    return documents, tally


def delimited(texts: Sequence[str], delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerow(["id", "text", "url"])
    writer.writerows([number, text, f"http://x/{number}"] for number, text in enumerate(texts))
    return out.getvalue().encode()


def table(texts: Sequence[str]) -> pyarrow.Table:
    urls = [f"http://x/{number}" for number in range(len(texts))]
    return pyarrow.table({"id": list(range(len(texts))), "text": list(texts), "url": urls})


def parquet(texts: Sequence[str]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(table(texts), out, row_group_size=7)
    return out.getvalue()


def arrow(texts: Sequence[str], stream: bool = False) -> bytes:
    out = io.BytesIO()
    whole = table(texts)
    new = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with new(out, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=5)
    return out.getvalue()


def tar(members: Sequence[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def samples(texts: Sequence[str]) -> bytes:
    members = []
    for number, text in enumerate(texts):
        members.append((f"a/{number:04d}.txt", text.encode()))
        members.append((f"a/{number:04d}.jpg", b"\xff\xd8 no text"))
        members.append((f"a/{number:04d}.json", json.dumps({"url": f"http://x/{number}"}).encode()))
    return tar(members)


def warc_record(kind: str, url: str, block: bytes) -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Length: {len(block)}\r\n\r\n"
    return head.encode() + block + b"\r\n\r\n"


def wet(texts: Sequence[str]) -> bytes:
    records = [warc_record("warcinfo", "", b"software: none\r\n")]
    records += [warc_record("conversion", f"http://x/{k}", text.encode()) for k, text in enumerate(texts)]
    return b"".join(records)


def jsonl(texts: Sequence[str]) -> bytes:
    rows = [{"id": k, "text": text, "url": f"http://x/{k}"} for k, text in enumerate(texts)]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def json_array(texts: Sequence[str]) -> bytes:
    rows = [{"text": text, "url": f"http://x/{k}", "n": [k, {"a": "[}"}]} for k, text in enumerate(texts)]
    return json.dumps(rows, indent=1, ensure_ascii=False).encode()


FORMATS: dict[str, Callable[[Sequence[str]], bytes]] = {
    "d.jsonl": jsonl,
    "d.ndjson": jsonl,
    "d.json": json_array,
    "lines.json": jsonl,
    "d.csv": lambda texts: delimited(texts, ","),
    "d.tsv": lambda texts: delimited(texts, "\t"),
    "d.parquet": parquet,
    "d.arrow": arrow,
    "stream.arrow": lambda texts: arrow(texts, stream=True),
    "d.tar": samples,
    "d.warc.wet": wet,
}
COLUMNAR = ("d.parquet", "d.arrow", "stream.arrow")
