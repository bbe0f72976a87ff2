"""Main memory of this machine, as much of it as this process may have."""

from __future__ import annotations

from pathlib import Path

COPY_SHARE = 0.8  # of the free memory that copies for saving may take: data and the page cache want some
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """What can still be had without swapping: the kernel's estimate, or less where a container is limited.

    None when the system does not tell.
    """
    try:
        lines = dict(
            line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines() if ":" in line
        )
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None
    limited = _left_in_cgroup(cgroup)
    return available if limited is None else min(available, limited)


def _left_in_cgroup(cgroup: Path) -> int | None:
    """Bytes below the container's limit; its file cache counts as free. None without a limit."""
    try:
        limit = (cgroup / "memory.max").read_text(encoding="utf-8").strip()
        if limit == "max":
            return None
        used = int((cgroup / "memory.current").read_text(encoding="utf-8"))
        stat = dict(
            line.split() for line in (cgroup / "memory.stat").read_text(encoding="utf-8").splitlines()
        )
        return max(0, int(limit) - used + int(stat["inactive_file"]) + int(stat["active_file"]))
    except (OSError, KeyError, ValueError):
        return None
