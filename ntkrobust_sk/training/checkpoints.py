"""Pytrees of arrays as safetensors files that know what they hold and what they are of; nothing is pickled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._files import require_file, write_atomically

# Where a file states what it is of, and its checksum.
STATED = "ntkrobust_sk"


class DamagedCheckpointError(OSError):
    """A checkpoint cannot be read, is not what was written, or is of something else.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint(Path(folder, "w"), {"w": np.ones(2)}, of="seed 0")
    ...     load_checkpoint(Path(folder, "w"), like={"w": np.ones(3)})
    Traceback (most recent call last):
    ntkrobust_sk.training.checkpoints.DamagedCheckpointError: the checkpoint ... is of something else: ...
    """


def save_checkpoint(path: Path, tree: Any, of: str = "") -> None:
    """Write a pytree of arrays (PRNG keys among them) as one safetensors file.

    Parameters
    ----------
    path : Path
    tree : pytree
    of : str, default=""
        What it is of, such as run, seed and epoch; the file states it, and its checksum covers it.
    """
    safetensors = _safetensors()
    leaves = _named_leaves(tree)
    arrays = {name: _plain(leaf) for name, leaf in leaves}
    if len(arrays) < len(leaves) or any(array.dtype.kind not in "biuf" for array in arrays.values()):
        raise TypeError(
            "a checkpoint holds NumPy's numbers under names of their own; cast bfloat16 to float32 first"
        )
    # under one name, since safetensors writes several in any order
    stated = json.dumps({"of": of, "sha256": _digest(arrays, of)})
    write_atomically(path, safetensors.save(arrays, metadata={STATED: stated}))


def load_checkpoint(path: Path, like: Any, of: str | None = None) -> Any:
    """Read what :func:`save_checkpoint` has written.

    Parameters
    ----------
    path : Path
    like : pytree
        Of the same structure, shapes and dtypes; its numbers do not matter.
    of : str, default=None
        What the file must be of; None takes any.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DamagedCheckpointError
        If it cannot be read, its checksum is wrong, or it holds something else.
    """
    arrays = read_arrays(path, of)
    leaves = []
    if unknown := sorted(set(arrays) - {name for name, _ in _named_leaves(like)}):
        raise DamagedCheckpointError(
            f"the checkpoint {path} is of something else: it holds {', '.join(unknown[:5])}"
        )
    for name, leaf in _named_leaves(like):
        plain = _plain(leaf)
        if name not in arrays or arrays[name].shape != plain.shape or arrays[name].dtype != plain.dtype:
            found = f"{arrays[name].dtype}{arrays[name].shape}" if name in arrays else "nothing"
            raise DamagedCheckpointError(
                f"the checkpoint {path} is of something else: {name} should be {plain.dtype}{plain.shape}, found "
                f"{found}"
            )
        leaves.append(_restored(arrays[name], leaf))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def read_arrays(path: Path, of: str | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of a checkpoint by their names, such as ``model/variables/params/dense/bias``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DamagedCheckpointError
        If it cannot be read, its checksum is wrong, or it is of something else than ``of``.
    """
    require_file(path)
    safetensors, data = _safetensors(), path.read_bytes()
    try:
        arrays = safetensors.load(data)
        length = int.from_bytes(data[:8], "little")
        stated = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][STATED])
        expected, found = stated["sha256"], stated["of"]
    except MemoryError:  # which says nothing of the file
        raise
    except Exception as error:  # whatever readers raise on bytes that nobody has written
        raise DamagedCheckpointError(
            f"the checkpoint {path} cannot be read, or states no checksum: {error!r}"
        ) from error
    if _digest(arrays, found) != expected:
        raise DamagedCheckpointError(f"the checkpoint {path} is damaged: its numbers do not match its checksum")
    if of is not None and found != of:
        raise DamagedCheckpointError(
            f"the checkpoint {path} is of something else: it was written as {found!r}, and not as {of!r}"
        )
    return arrays


def _named_leaves(tree):
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in found]


def _is_key(leaf) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf) -> np.ndarray:
    # np.ascontiguousarray would make a vector of a number
    return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")


def _restored(array, leaf):
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return jnp.asarray(array)


def _digest(arrays, of) -> str:
    digest = hashlib.sha256(f"{len(of)}:{of}".encode())
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].dtype.str}{arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("checkpoints need safetensors: pip install 'ntkrobust_sk[evolution]'") from error
    return safetensors.numpy
