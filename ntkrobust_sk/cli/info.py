"""``ntkrobust info``."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import __version__
from .answer import Answer
from .options import Parser, add_output

HELP = "versions, devices and memory; or what a saved model, a run or a store is"
DESCRIPTION = (
    "Without a path: what is installed here and what is missing, devices, memory and BLAS. With one: what the "
    "file or folder holds: a saved model, a run of evolve, a Gram store, adversarial examples, or data. A file "
    "of joblib is not opened, since that would run code in it."
)
# The packages of the extras, as pip names them.
EXTRAS = {
    "gpu": ("cupy-cuda13x",),
    "infinite": ("neural-tangents", "frozendict"),
    "nets": ("flax", "equinox", "dm-haiku"),
    "plot": ("matplotlib",),
    "distributed": ("dask",),
    "store": ("zarr",),
    "evolution": ("safetensors", "zarr", "matplotlib", "pandas", "jinja2"),
}
NEEDED = ("jax", "optax", "numpy", "scipy", "scikit-learn", "joblib")


def add_arguments(parser: Parser) -> None:
    """Add the options of ``ntkrobust info``."""
    parser.add_argument("path", nargs="?", metavar="PATH", help="a model, run, store or .npz file to look at")
    add_output(parser)


def run(options: dict[str, Any]) -> Answer:
    """Run ``ntkrobust info``."""
    from .._validation import check_path
    from .looked_at import what_is_at

    found = _here() if options["path"] is None else what_is_at(check_path("PATH", options["path"]))
    return Answer("\n".join(_lines(found)), lambda: found)


def _here() -> dict[str, Any]:
    import jax

    from ..execution.devices import blas, free_bytes
    from ..execution.memory import readable

    libraries = [f"{one['internal_api']} {one['version']}, {one['num_threads']} threads" for one in blas().info()]
    # Windows has no such question
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    devices = [
        " ".join(dict.fromkeys((one.platform, one.device_kind)))
        + ("" if (free := free_bytes(one)) is None else f", {readable(free)} free")
        for one in jax.devices()
    ]
    return {
        "ntkrobust_sk": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": devices,
        "double precision": bool(jax.config.read("jax_enable_x64")),
        "cores": os.cpu_count(),
        "memory": memory,
        "blas": libraries,
        "packages": {name: _version(name) for name in NEEDED},
        "extras": {extra: {name: _version(name) for name in names} for extra, names in EXTRAS.items()},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _lines(found: dict[str, Any]) -> list[str]:
    """Write what was found, a line for each entry; what is missing says how to install it."""
    from ..execution.memory import readable

    lines = []
    for name, value in found.items():
        if name == "extras":
            lines += [f"{f'[{extra}]':<22}{_installed(extra, parts)}" for extra, parts in value.items()]
        elif name == "memory":
            lines.append(f"{name:<22}{'not known' if value is None else readable(value)}")
        else:
            lines.append(f"{name:<22}{_text(value)}")
    return lines


def _installed(extra, parts) -> str:
    missing = [name for name, there in parts.items() if there is None]
    there = [f"{name} {number}" for name, number in parts.items() if number is not None]
    advice = [f"missing: {', '.join(missing)} (pip install 'ntkrobust_sk[{extra}]')"] if missing else []
    return "; ".join([", ".join(there)] * bool(there) + advice)


def _text(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "missing" if value is None else str(value)
