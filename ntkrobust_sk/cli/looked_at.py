"""What a file or folder of this library holds, found without running code from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from .._files import read_npz, require_file
from ..evolution.experiment import load_evolution
from ..evolution.tasks import tasks_of
from ..kernels.store import open_to_read
from ..kernels.store_header import read_header
from ..networks.model import Model
from ..reports.evidence import counted, learning_of, stated_claims
from ..saving import load
from ..saving.archive import DOCUMENT, is_saved_file
from .attacked_examples import EXAMPLES, read_examples
from .saved_models import load_estimator


def what_is_at(path: Path) -> dict[str, Any]:
    """Return what there is at a path, by name.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    ValueError
        If it is nothing that is known here, or damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.is_dir():
        return _in_a_folder(path)
    require_file(path)
    if is_saved_file(path):
        return _saved(path)
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    if is_archive and path.suffix == ".npz":
        return _arrays(path)
    if is_archive:
        return {"file": str(path), "written by": "skops"} | _described(load_estimator(path))
    raise ValueError(
        f"{path} is no file of save or of skops, and no .npz; a file of joblib is not opened, since that would "
        "run code in it"
    )


def _in_a_folder(path) -> dict[str, Any]:
    if (path / "settings.json").exists():
        return _run(path)
    if (path / "zarr.json").exists():
        return _store(path)
    raise ValueError(
        f"{path} is a folder, but no run of evolve (no settings.json) and no Gram store (no zarr.json)"
    )


def _run(path) -> dict[str, Any]:
    result = load_evolution(path)
    experiment, has_begun = result.experiment, bool(result.of_kind("checkpoint"))
    learning = learning_of(result) if has_begun else None
    claims = ", ".join(counted(stated_claims(result, learning))) if learning else "none tested yet"
    return {
        "run": str(path),
        "data": experiment.data,
        "network": str(experiment.network),
        "epsilon": experiment.epsilon,
        "seeds": experiment.seeds,
        "results": f"{len(result.results)} of {len(tasks_of(experiment))}",
        "claims": claims,
        "report": str(path / "report.html") if (path / "report.html").exists() else None,
    } | ({"no verdicts": learning.why_not} if learning and not learning.is_enough else {})


def _store(path) -> dict[str, Any]:
    there, store = read_header(path), open_to_read(path)
    height, width = (-(-size // store.rows) for size in store.array.shape[:2])
    held = sum(store.holds(i, j) for i in range(height) for j in range(width))
    return {
        "Gram store": str(path),
        "kernel": there["kernel"],
        "network": there["network"],
        "shape": list(store.array.shape),
        "dtype": there["dtype"],
        "tiles": f"{held} of {height * width}",
        "written by": {"ntkrobust_sk": there["version"], "jax": there["jax"], "python": there["python"]},
    }


def _saved(path) -> dict[str, Any]:
    # checksums are looked at here
    loaded = load(path)
    with ZipFile(path) as archive:
        written_by = json.loads(archive.read(DOCUMENT))["written_by"]
    return {"file": str(path), "written by": written_by} | _described(loaded)


def _described(loaded) -> dict[str, Any]:
    """Describe a model or an estimator by what it says of itself."""
    said = {"holds": type(loaded).__name__, "is": " ".join(repr(loaded).split())}
    model = loaded if isinstance(loaded, Model) else getattr(loaded, "model_", None)
    if isinstance(model, Model) and model is not loaded:
        said["network"] = repr(model)
    for name, attribute in (
        ("features", "n_features_in_"),
        ("columns", "feature_names_in_"),
        ("classes", "classes_"),
    ):
        if (value := getattr(loaded, attribute, None)) is not None:
            said[name] = value.tolist() if hasattr(value, "tolist") else value
    return said


def _arrays(path) -> dict[str, Any]:
    arrays = read_npz(path)
    if {*EXAMPLES, "settings"} <= set(arrays):
        found, settings = read_examples(path)
        n, fooled = len(found["fooled"]), int(found["fooled"].sum())
        kept = {name: settings[name] for name in ("model", "data", "attack") if name in settings}
        return {"adversarial examples": str(path), **kept, "wrongly answered": f"{fooled} of {n}"}
    shapes = {name: f"{array.dtype} {array.shape}" for name, array in arrays.items()}
    return {"arrays": str(path), **shapes}
