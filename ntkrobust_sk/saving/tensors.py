"""Arrays as the bytes of a safetensors file, written and read here: nothing is taken on trust.

The format (https://huggingface.co/docs/safetensors): the length of a header as 8 bytes, the header as JSON with
dtype, shape and place of each array, and then the arrays, one after the other without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

# The format's dtypes.
DTYPES = {
    "BOOL": np.dtype(bool),
    **{f"{kind}{8 * size}": np.dtype(f"{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


def written(arrays: Mapping[str, np.ndarray]) -> Iterator[Any]:
    r"""Go through the bytes of a file of these arrays, piece by piece.

    Parameters
    ----------
    arrays : dict of str to array
        In C order, of the dtypes in ``DTYPES``.

    >>> b"".join(written({"w": np.ones(2, np.uint8)}))[8:]
    b'{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}   \x01\x01'
    """
    # the widest first, so that each begins at a multiple of its own size
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header, end = {}, 0
    for name in names:
        of, start, end = arrays[name], end, end + arrays[name].nbytes
        header[name] = {"dtype": CODES[of.dtype], "shape": list(of.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in names:
        yield arrays[name].reshape(-1).view(np.uint8).data


def parsed(data: bytearray) -> dict[str, np.ndarray]:
    """Read arrays by name from a file's bytes; each is a view of them.

    Raises
    ------
    ValueError
        For anything that is not exactly such a file.

    >>> parsed(bytearray(b"".join(written({"w": np.arange(3.0)}))))
    {'w': array([0., 1., 2.])}
    """
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= len(data) - 8:
        raise ValueError(f"its header should have {length:,} bytes, of {len(data):,} in all")
    header = json.loads(data[8 : 8 + length].decode())
    start, found = 8 + length, {}
    room, end = len(data) - start, 0
    for name, stated in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (first, last) = DTYPES[stated["dtype"]], stated["shape"], stated["data_offsets"]
        sizes = [*shape, first, last]
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise ValueError(f"array {name!r} has shape {shape} at {first}, {last}")
        if first != end or last > room or last - first != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"array {name!r} of {dtype} and shape {shape} is not what is at {first}, {last}")
        end = last
        flat = np.frombuffer(data, np.uint8, last - first, start + first)
        if dtype.kind == "b" and flat.size and flat.max() > 1:
            # NumPy counts what is true by adding up bytes
            raise ValueError(f"array {name!r} of truth values holds the byte {flat.max()}")
        found[name] = flat.view(dtype).reshape(shape)
    if end != room:
        raise ValueError(f"{room - end:,} bytes belong to no array")
    return found
