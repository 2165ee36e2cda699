"""Where a command's data come from, and where its results go."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from .signatures import constant


def say_where_from(command: str, data: str, data_dir: str | None) -> None:
    """Say on stderr that a data set will be fetched, if it will be."""
    if data in constant("evolution/presets.py", "PRESETS") and data != "digits" and data_dir is None:
        print(f"ntkrobust {command}: no --data-dir, so {data} is fetched from OpenML", file=sys.stderr)


def require_new(path: Path, overwrite: bool) -> None:
    """Raise FileExistsError where an output is there that nobody allowed to replace."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"--out {path} is there already; give another one, or --overwrite to replace it")


def output_file(out: str, *inputs: str, overwrite: bool = False) -> Path:
    """Return the file that a command is to write, refused before the work where it cannot be."""
    from .._files import explained, require_file
    from .._validation import check_path

    path = check_path("--out", out)
    for name in inputs:
        if Path(name).exists() and path.exists() and Path(name).samefile(path):
            raise ValueError(f"--out {path} would overwrite what is attacked; give another file")
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder; give a file, such as {path / 'adversarial.npz'}")
    with explained(path):
        require_file(path)
        require_new(path, overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return path
