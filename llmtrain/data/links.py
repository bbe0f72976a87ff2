"""Which links are followed where a file is copied on: those that stay with the folder they lie in."""

from __future__ import annotations

from pathlib import Path

from llmtrain.errors import DataError


def refuse_link_out(path: Path) -> None:
    """Raises DataError when a file is a link that leads out of its folder.

    A stranger's tokenizer whose chat template is a link to a private key would be copied into the dataset,
    every checkpoint and the export. The Hub's cache is made of links to the blobs beside its snapshots.
    """
    folder = path.parent.resolve()
    homes = [folder, *(above.parent / "blobs" for above in folder.parents if above.name == "snapshots")]
    target = path.resolve()
    if not any(target.is_relative_to(home) for home in homes):
        raise DataError(
            f"{path} is a link that leads out of its folder, to {target}: it is not copied on; "
            "put the file itself there if you trust it"
        )
