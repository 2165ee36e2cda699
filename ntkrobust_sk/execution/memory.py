"""Amounts of memory, as people write them and in bytes."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from .._validation import brief, number

UNIT = "of bytes, or a string such as '2GiB' or '500MB'"


def parse_memory(memory: str | int) -> int:
    """Return the bytes of "512MiB", "2GiB", "1.5 GB" or a plain number.

    >>> parse_memory("2GiB"), parse_memory(1000)
    (2147483648, 1000)
    >>> parse_memory(None)
    Traceback (most recent call last):
    ValueError: memory must be a finite number >= 1 of bytes, or a string such as '2GiB' or '500MB', got None
    """
    if isinstance(memory, str):
        return _parse(memory)
    return int(number("memory", memory, low=1, unit=UNIT))


# called with one string again and again
@lru_cache(maxsize=64)
def _parse(memory: str) -> int:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kKMGT]i?)?B\s*", memory)
    if match is None:
        raise ValueError(f"memory must be bytes or a string such as '2GiB' or '500MB', got {brief(memory)}")
    digits, prefix = match.groups()
    base = 1024 if prefix and prefix.endswith("i") else 1000
    n_bytes = float(digits) * base ** (" KMGT".index(prefix[0].upper()) if prefix else 0)
    return int(number("memory", n_bytes, low=1, unit=UNIT))


def readable(n_bytes: float) -> str:
    """Return bytes as people write them.

    >>> readable(3 * 2**29)
    '1.5 GiB'
    """
    for unit in ("bytes", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.4g} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:,.1f} GiB"


def host_bytes_free() -> int | None:
    """Return what processes may still take of this machine's memory, or of a container's; None where nobody says.

    What the system can give back at once, such as files that it keeps, counts as free; so does swap space not.
    """
    found = [_meminfo_bytes(), _container_bytes()]
    known = [size for size in found if size is not None]
    if known:
        return min(known)
    with suppress(AttributeError, OSError, ValueError):
        # systems without /proc say at least what they have in all
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _meminfo_bytes() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def _container_bytes() -> int | None:
    """Return what is left of the limit of a control group (version 2), of which files in its cache are no part."""
    folder = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError, KeyError):
        limit, taken = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        lines = (folder / "memory.stat").read_text().splitlines()
        kept = int(dict(line.split() for line in lines).get("inactive_file", 0))
        return None if limit == "max" else max(0, int(limit) - int(taken) + kept)
    return None
