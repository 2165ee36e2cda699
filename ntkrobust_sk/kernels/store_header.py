"""What a store of a Gram matrix says of itself: what it was computed from, and how it is laid out."""

import hashlib
import json
import platform
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .. import __version__
from .._files import read_json
from .._validation import brief, check_choice, integer
from ..datasets.items import Rows
from ..execution.precision import DIGITS
from ..networks.model import Model
from .fingerprint import UNSURE, hash_arrays, without_addresses
from .ntk import Kernel

# Of what a store holds and how; what was written in another one is refused.
FORMAT = 3
# What zarr and NumPy both know.
DTYPES = ("float16", "float32", "float64")
CODECS = [("bytes", "little"), ("crc32c", None)]
# Compared only where the same versions of these have written it down.
WRITERS = ("jax", "python")


class StoreMismatchError(ValueError):
    """The error of a store that was computed from something else, or is none.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     read_header(Path(folder))
    Traceback (most recent call last):
    ntkrobust_sk.kernels.store_header.StoreMismatchError: ... is there, but is no zarr array: ...
    """


def import_zarr() -> Any:
    """Import zarr, or say how to install it."""
    try:
        import zarr
        import zarr.codecs
        import zarr.storage
    except ImportError as error:
        raise ImportError("a Gram store needs zarr: pip install 'ntkrobust_sk[store]'") from error
    return zarr


def matrix_shape(there: dict) -> tuple[int, ...]:
    """Return the shape of the matrix that a store's attributes state."""
    return (there["n_X"], there.get("n_Y", there["n_X"]), *there["tail"])


def numpy_dtype(there: dict) -> str:
    """Return the dtype of the numbers in a store."""
    return "float32" if there["dtype"] in DIGITS else there["dtype"]


def zarr_metadata(there: dict) -> bytes:
    """Return the file ``zarr.json`` of a store with these attributes, and with their checksum."""
    zarr, files = import_zarr(), {}
    there = there | {"sha256": _digest(there)}
    zarr.create_array(
        store=zarr.storage.MemoryStore(files),
        shape=matrix_shape(there),
        chunks=(there["tile_rows"],) * 2 + tuple(there["tail"]),
        dtype=numpy_dtype(there),
        fill_value=np.nan,
        compressors=zarr.codecs.Crc32cCodec(),
        attributes={"ntkrobust_sk": there},
    )
    return files["zarr.json"].to_bytes()


# How a network with chosen parameters prints, networks.chosen_parameters.Restricted.
RESTRICTED = re.compile(r"Restricted\(network=(.*), params=(\([^()]*\))\)", re.DOTALL)


def _digest(there) -> str:
    own = {name: value for name, value in there.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def read_header(path: Path) -> dict:
    """Read what a store says of itself, and check that it fits together; nothing is allocated for it before."""
    file = path / "zarr.json"
    try:
        metadata = read_json(file)
        attributes = metadata["attributes"]
    except (OSError, KeyError, TypeError) as error:
        raise StoreMismatchError(f"{path} is there, but is no zarr array: {error}; use another path") from error
    there = attributes.get("ntkrobust_sk") if isinstance(attributes, dict) else None
    if not isinstance(there, dict):
        raise StoreMismatchError(f"{path} is a zarr array, but none that gram has written; use another path")
    if there.get("format") != FORMAT:
        raise StoreMismatchError(
            f"the Gram store {path} was written by another version of this library, in format "
            f"{brief(there.get('format', 1))}; here it is {FORMAT}. Use another path, or delete this one "
            f"(zarr.open_array({str(path)!r})[:] reads its numbers, unchecked)"
        )
    try:
        if there.get("sha256") != _digest(there):
            raise ValueError("what it says of itself was changed, and does not match its checksum")
        for name in ("n_X", "tile_rows", "seeds", *(["n_Y"] if "n_Y" in there else [])):
            integer(name, there.get(name))
        for name in ("identity", "dtype", *there.keys() & {"sha256_X", "sha256_Y"}):
            if not isinstance(there.get(name), str):
                raise ValueError(f"{name} must be text, got {brief(there.get(name))}")
        tail = there.get("tail")
        if not isinstance(tail, list) or len(tail) > 2 or len({integer("tail", size) for size in tail}) > 1:
            raise ValueError(f"tail must be [], [C] or [C, C], got {brief(tail)}")
        check_choice("dtype", there["dtype"], (*DTYPES, *DIGITS))
        _require_fitting(metadata, there)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreMismatchError(
            f"{file} is damaged, and says nothing sure of the Gram store: {error}. Delete {path}, or use another "
            "path"
        ) from error
    return there


def _require_fitting(metadata, there):
    """Raise ValueError unless what zarr goes by is what our attributes ask for."""
    chunk = [there["tile_rows"], there["tile_rows"], *there["tail"]]
    codecs = [(codec["name"], codec.get("configuration", {}).get("endian")) for codec in metadata["codecs"]]
    keys = metadata["chunk_key_encoding"]
    pairs = {
        "zarr_format": (metadata["zarr_format"], 3),
        "node_type": (metadata["node_type"], "array"),
        "shape": (metadata["shape"], list(matrix_shape(there))),
        "data_type": (metadata["data_type"], numpy_dtype(there)),
        "chunk_grid": (metadata["chunk_grid"], {"name": "regular", "configuration": {"chunk_shape": chunk}}),
        "chunk_key_encoding": ((keys["name"], keys["configuration"]), ("default", {"separator": "/"})),
        "codecs": (codecs, CODECS),
    }
    for name, (found, expected) in pairs.items():
        # as text, in which 1, 1.0 and true are three things
        if json.dumps(found) != json.dumps(expected):
            raise ValueError(f"{name} is {brief(found)}, where its attributes ask for {brief(expected)}")


def require_same(
    path: Path, there: dict, made_from: dict, X: np.ndarray | Rows, Y: np.ndarray | Rows | None
) -> None:
    """Raise StoreMismatchError unless a store was computed from the same, or from the first rows of it."""
    functions = [str(function) for function in (made_from["sha256_function"], there.get("sha256_function"))]
    for why in (function.removeprefix(UNSURE) for function in functions if function.startswith(UNSURE)):
        raise StoreMismatchError(
            f"nobody can know whether the Gram store {path} belongs to this network and kernel, and nothing of it "
            f"was changed: they call Python code outside of JAX that reads {brief(why)}. Give such code all that "
            "it needs as arrays, numbers, closures or attributes of objects, write it in JAX, or use another path"
        )
    same_writers = all(there.get(name) == made_from[name] for name in WRITERS)
    differences = []
    for name, here in made_from.items():
        if there.get(name) != here and name == "sha256_function" and same_writers:
            differences.append("function: network or kernel compute something else, however they print")
        elif there.get(name) != here and name not in (*WRITERS, "sha256_function"):
            differences += _what_differs(name, there.get(name), here)
    for name, inputs in (("X", X), ("Y", Y)):
        n_there, hash_there = there.get(f"n_{name}"), there.get(f"sha256_{name}")
        if n_there is None or inputs is None:
            if n_there is not None or inputs is not None:
                differences.append(f"{name}: {n_there} rows there, {None if inputs is None else len(inputs)} here")
        elif n_there > len(inputs):
            differences.append(f"{name}: {n_there} rows there, only {len(inputs)} here")
        elif hash_there != hash_arrays([inputs[:n_there]]):
            differences.append(f"{name}: the first {n_there} rows hold other numbers")
    if differences:
        raise mismatch(path, "; ".join(differences))


def _what_differs(name: str, there: Any, here: Any) -> list[str]:
    """Say how a value there differs from that here; of a network with chosen parameters, in which of the two."""
    networks = [RESTRICTED.fullmatch(text) if isinstance(text, str) else None for text in (there, here)]
    if not any(networks):
        return [f"{name}: {brief(there)} there, {brief(here)} here"]
    (net_there, params_there), (net_here, params_here) = (
        found.groups() if found else (text, "all of them")
        for found, text in zip(networks, (there, here), strict=True)
    )
    differences = [] if net_there == net_here else [f"{name}: {brief(net_there)} there, {brief(net_here)} here"]
    if params_there != params_here:
        differences.append(f"params: {params_there} there, {params_here} here")
    return differences


def mismatch(path: Path, difference: str) -> StoreMismatchError:
    """Return the error of a store that was computed from something else."""
    return StoreMismatchError(
        f"the Gram store {path} was computed from something else, and nothing of it was changed. {difference}. "
        "Use another path, or delete this one"
    )


def provenance(kernel: Kernel, model: Model, dtype, function: str) -> dict:
    """Return whatever an entry's value depends on, to the last bit."""
    name = dtype if dtype in DIGITS else str(np.dtype(dtype))
    if name not in (*DTYPES, *DIGITS):
        raise ValueError(f"a store holds {', '.join(DTYPES)}, not {name}; give dtype='float32'")
    return {
        "kernel": without_addresses(kernel),
        "network": without_addresses(model.network),
        "sha256_function": function,
        "sha256_variables": hash_arrays(jax.tree.leaves(model.variables)),
        "dtype": name,
        "platform": jax.default_backend(),
        "version": __version__,
        "jax": jax.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def described_inputs(X: np.ndarray | Rows, Y: np.ndarray | Rows | None) -> dict:
    """Return the numbers of rows and columns, and fingerprints of their inputs."""
    known = {"n_X": len(X), "sha256_X": hash_arrays([X])}
    return known if Y is None else known | {"n_Y": len(Y), "sha256_Y": hash_arrays([Y])}
