"""Which token formats there are, by name."""

from __future__ import annotations

from data_prep.formats.datatrove import DATATROVE
from data_prep.formats.megatron import MEGATRON
from data_prep.formats.nanogpt import NANOGPT
from data_prep.formats.olmo import OLMO
from data_prep.formats.parquet import PARQUET
from data_prep.formats.token_files import TokenFormat

FORMATS: dict[str, TokenFormat] = {
    "megatron": MEGATRON,
    "datatrove": DATATROVE,
    "olmo": OLMO,
    "nanogpt": NANOGPT,
    "parquet": PARQUET,
}
