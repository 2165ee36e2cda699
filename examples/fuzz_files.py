"""Mutated files: whatever happens to a file, it is refused by name, or gives what it gave before.

Valid files of every kind are made once. In each case a copy of them is damaged in one or two ways (bits, bytes,
cuts, insertions, files swapped, copied over each other, emptied, added or removed, links in their place, values of
JSON replaced or deleted), and is read as a user would read it. What comes back is

    refused   an error that names a path among the files
    right     what the whole files give
    warned    something else, after a warning that names a path among the files
    wrong     something else, without a word
    hung      nothing after 20 seconds
    obscure   an error that names none of the files, or comes from inside of Python, NumPy, JAX or zarr
    executed  code was compiled or run, a module imported, a process started, or a file opened for writing

The last is looked for in files of ``save``, whose loading runs no code. Of these, "saved-forged" has checksums
that are made anew after the damage, as whoever wants to harm would do: what is loaded may then be another object.

    python examples/fuzz_files.py                             # 3,000 cases over all kinds, some minutes
    python examples/fuzz_files.py --n 10000 --kinds saved     # files of save alone, with a line of its own
    python examples/fuzz_files.py --seed 3 --n 500 --kinds store npz
    python examples/fuzz_files.py --seed 3 --kinds store --case 17   # one case, with its traceback

The process ends with an error if anything was wrong, hung, obscure or executed. A kind is an entry of ``KINDS``.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import faulthandler
import gzip
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, wraps
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 20
# What a case may allocate beyond what the process has: a header that asks for more is not to be believed.
MEMORY = 8 * 2**30
FAULTS = ("wrong", "hung", "obscure", "executed")
# What Python tells of (https://docs.python.org/3/library/audit_events.html) when code runs that was not running.
EXECUTING = ("exec", "compile", "import", "pickle.find_class", "marshal.loads", "ctypes.dlopen", "os.system")
EXECUTING += ("os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "shutil.rmtree")
WRITING = os.O_WRONLY | os.O_RDWR
COLUMNS = ("refused", "right", "warned", *FAULTS)


def same(found, expected) -> bool:
    """Tell whether two results are equal to the bit: arrays, numbers, text, and containers or objects of these."""
    if isinstance(expected, np.ndarray):
        form = (expected.dtype, expected.shape, expected.tobytes())
        return isinstance(found, np.ndarray) and (found.dtype, found.shape, found.tobytes()) == form
    if isinstance(expected, Mapping):
        known = isinstance(found, Mapping) and found.keys() == expected.keys()
        return known and all(same(found[key], expected[key]) for key in found)
    if isinstance(expected, tuple | list):
        return type(found) is type(expected) and len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and found == expected


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes
    ----------
    make : callable
        ``make(folder)`` writes valid files into an empty folder.
    read : callable
        ``read(folder)`` gives what the library makes of them; it may go on with what is unfinished.
    right : callable
        ``right(found, expected)``: whether what was read may be used in the place of what the whole files give.
    errors : tuple of type
        What may be raised.
    runs_code : bool
        Whether reading may import modules, compile and write.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    right: Callable[[Any, Any], bool] = same
    errors: tuple = (OSError, ValueError)
    runs_code: bool = True


# What happens to files. Each takes a generator and a folder, and says what it did, or None where there was nothing
# to do it to.


def _files(folder, suffix=""):
    return sorted(path for path in folder.rglob(f"*{suffix}") if path.is_file())


def _pick(rng, items):
    return items[rng.integers(len(items))] if items else None


def _place(rng, size):
    """A position in a file: as often near its ends, where headers are, as anywhere."""
    near = int(rng.integers(min(size, 256)))
    return (near, size - 1 - near, int(rng.integers(size)), int(rng.integers(size)))[rng.integers(4)]


def _edits(edit):
    """Make a mutation of a function that edits the content of one file that is not empty, at some place."""

    @wraps(edit)
    def mutation(rng, folder):
        path = _pick(rng, [path for path in _files(folder) if path.stat().st_size])
        if path is None:
            return None
        content = bytearray(path.read_bytes())
        said = edit(rng, content, _place(rng, len(content)))
        path.write_bytes(content)
        return f"{path.relative_to(folder)}: {said}"

    return mutation


@_edits
def flip_bit(rng, content, at):
    """One bit."""
    bit = int(rng.integers(8))
    content[at] ^= 1 << bit
    return f"bit {bit} of byte {at}"


@_edits
def change_bytes(rng, content, at):
    """A few bytes in a row, at random or all alike."""
    size = min(int(rng.integers(1, 17)), len(content) - at)
    new = rng.bytes(size) if rng.integers(2) else bytes([_pick(rng, [0, 1, 48, 57, 127, 255])]) * size
    content[at : at + size] = new
    return f"{size} bytes from {at}"


@_edits
def truncate(rng, content, at):
    """The end is missing."""
    del content[at:]
    return f"cut at {at}"


@_edits
def insert(rng, content, at):
    """Bytes that do not belong there, or a part of the file twice."""
    size = int(rng.integers(1, 65))
    content[at:at] = rng.bytes(size) if rng.integers(2) else content[max(0, at - size) : at]
    return f"up to {size} bytes at {at}"


@_edits
def append(rng, content, at):
    """Something after the end."""
    content += _pick(rng, [b"\0", b"\n", b"{}", rng.bytes(100), bytes(content)])
    return "something after its end"


def _exchanged(rng, folder, files, both=None):
    """One of some files in the place of another, and perhaps that one in its place."""
    if files is None or len(files) < 2:
        return None
    one, two = (files[at] for at in rng.choice(len(files), 2, replace=False))
    contents = one.read_bytes(), two.read_bytes()
    two.write_bytes(contents[0])
    if both := rng.integers(2) if both is None else both:
        one.write_bytes(contents[1])
    return f"{one.relative_to(folder)} and {two.relative_to(folder)} {'swapped' if both else 'alike'}"


def swap_files(rng, folder):
    """Two files in each other's place."""
    return _exchanged(rng, folder, _files(folder), both=True)


def copy_file(rng, folder):
    """One file in another's place."""
    return _exchanged(rng, folder, _files(folder), both=False)


def remove_file(rng, folder):
    """A file is gone, or a folder is in its place."""
    path = _pick(rng, _files(folder))
    path.unlink()
    if rng.integers(8) == 0:
        path.mkdir()
        return f"{path.relative_to(folder)} is a folder"
    return f"{path.relative_to(folder)} removed"


def swap_alike(rng, folder):
    """Two files of one kind in each other's place, or one of them in both."""
    kinds = {}
    for path in _files(folder):
        kinds.setdefault((path.suffix, len(path.relative_to(folder).parts)), []).append(path)
    return _exchanged(rng, folder, _pick(rng, [files for files in kinds.values() if len(files) > 1]))


def empty_file(rng, folder):
    """Nothing is left in a file."""
    path = _pick(rng, _files(folder))
    path.write_bytes(b"")
    return f"{path.relative_to(folder)} emptied"


def link(rng, folder):
    """A link to itself, to nowhere, to another file or to a folder above, in the place of a file or a folder."""
    path = _pick(rng, sorted(path for path in folder.rglob("*") if not path.is_symlink()))
    to = _pick(rng, [path, folder / "nowhere", _pick(rng, _files(folder)), path.parent])
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    path.symlink_to(to)
    return f"{path.relative_to(folder)} is a link to {to.relative_to(folder)}"


def add_file(rng, folder):
    """A file or a folder that does not belong there, under a name like those that do."""
    like = _pick(rng, sorted(folder.rglob("*")))
    name = _pick(rng, [".DS_Store", "notes.txt", f"{like.name}~", f"9{like.name}", f"{like.stem}9{like.suffix}"])
    path = like.with_name(name)
    if path.exists():
        return None
    if rng.integers(3) == 0:
        path.mkdir()
    else:
        path.write_bytes(like.read_bytes() if like.is_file() and rng.integers(2) else rng.bytes(100))
    return f"{path.relative_to(folder)} added"


def remove_folder(rng, folder):
    """A whole folder is gone."""
    path = _pick(rng, sorted(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()))
    if path is None:
        return None
    shutil.rmtree(path)
    return f"{path.relative_to(folder)}/ removed"


ODD = (-1, 0, 1, 2, 3, 10**12, 10**30, 0.5, -0.0, 1e308, float("nan"), True, False, None, "", "x", "0" * 5000)
ODD += ("os.system", "builtins.exec", "float64", "int32", [], [[]], [1, 2], {}, {"a": 1})


def _json_places(value, at=()):
    """Where values are in a tree of JSON."""
    if isinstance(value, dict | list):
        for key, held in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*at, key)
            yield from _json_places(held, (*at, key))


def change_json(rng, folder):
    """A value of a JSON file, or of one of its lines, is another, or is gone."""
    path = _pick(rng, _files(folder, ".json") + _files(folder, ".jsonl"))
    if path is None:
        return None
    try:
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        number = int(rng.integers(len(lines)))
        tree = json.loads(lines[number])
    except ValueError:  # what came first has left no JSON
        return None
    places = list(_json_places(tree))
    if not places:
        return None
    *outer, last = _pick(rng, places)
    held = tree
    for key in outer:
        held = held[key]
    if rng.integers(4) == 0:
        del held[last]
        said = "deleted"
    else:
        held[last] = _near(rng, held[last])
        said = f"is {held[last]!r:.30}"
    lines[number] = json.dumps(tree)
    path.write_text("\n".join(lines) + "\n" * (path.suffix == ".jsonl"))
    return f"{path.relative_to(folder)}, line {number + 1}: {[*outer, last]} {said}"


def _near(rng, value):
    """Another value of the same type, or one of any other."""
    if rng.integers(2) or isinstance(value, bool | dict | list | None.__class__):
        return _pick(rng, [odd for odd in ODD if repr(odd) != repr(value)])
    if isinstance(value, str):
        at = int(rng.integers(len(value) + 1))
        return value[:at] + _pick(rng, "07afx/") + value[at + 1 :]
    return value + _pick(rng, [-1, 1, 10]) if rng.integers(2) else value * _pick(rng, [-1, 2, 10])


def change_lines(rng, folder):
    """A line of text twice, gone, or in another's place."""
    path = _pick(rng, _files(folder, ".jsonl"))
    lines = path.read_bytes().splitlines(keepends=True) if path else []
    if not lines:
        return None
    one, two = int(rng.integers(len(lines))), int(rng.integers(len(lines)))
    match rng.integers(3):
        case 0:
            lines.insert(two, lines[one])
            said = f"line {one + 1} again as line {two + 1}"
        case 1:
            lines[one], lines[two] = lines[two], lines[one]
            said = f"lines {one + 1} and {two + 1} swapped"
        case _:
            del lines[one]
            said = f"line {one + 1} removed"
    path.write_bytes(b"".join(lines))
    return f"{path.relative_to(folder)}: {said}"


MUTATIONS = (
    *(3 * (flip_bit, change_bytes, change_json)),
    *(2 * (truncate, insert, swap_files, swap_alike, copy_file)),
    *(append, remove_file, remove_folder, change_lines, empty_file, link, add_file),
)


def mutate(rng, folder) -> list[str]:
    """Damage a folder's files in one way, or in two, and say in which."""
    said = []
    while len(said) < 1 or (len(said) < 2 and rng.integers(5) == 0 and _files(folder)):
        done = _pick(rng, MUTATIONS)(rng, folder)
        said += [done] if done else []
    return said


# The kinds.


@cache
def _gram_arguments():
    import jax

    from ntkrobust_sk import MLP, Model, TraceNTK
    from ntkrobust_sk.kernels.plan import fixed_plan

    network = MLP(n_outputs=2, widths=(3,))
    model = Model(network, network.init(jax.random.key(0), (4,)))
    X = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    return TraceNTK(), model, X, fixed_plan(TraceNTK(), model, (4,), 3, 2)


def make_store(folder: Path):
    """A finished store of nine tiles, or one that goes on, and its matrix."""
    from ntkrobust_sk import gram

    kernel, model, X, plan = _gram_arguments()
    return gram(kernel, model, X, plan=plan, store=folder / "K.zarr")


def make_unfinished_store(folder: Path) -> None:
    """A store two of whose tiles are not there."""
    make_store(folder)
    for tile in ("c/1/2", "c/0/2"):
        (folder / "K.zarr" / tile).unlink()


def read_store(folder: Path):
    """The matrix as it is on disk."""
    from ntkrobust_sk.kernels.store import read_gram

    return read_gram(folder / "K.zarr")


def make_npz(folder: Path) -> None:
    """Examples of a user's own, small enough for every header to be met often."""
    rng = np.random.default_rng(0)
    X, X_test = rng.uniform(size=(12, 3)).astype(np.float32), rng.uniform(size=(6, 3)).astype(np.float32)
    np.savez(folder / "own.npz", X=X, y=np.arange(12) % 3, X_test=X_test, y_test=np.arange(6) % 3)


def make_large_npz(folder: Path) -> None:
    """Examples beyond the bytes that zipfile reads at once, compressed."""
    X = np.random.default_rng(0).uniform(size=(600, 7, 3)).round(2)
    np.savez_compressed(folder / "own.npz", X=X, y=np.array(["cat", "dog", "elk"])[np.arange(600) % 3])


def read_npz(folder: Path):
    """Its training and test examples."""
    from ntkrobust_sk.datasets.splits import load_splits

    return tuple(load_splits(folder / "own.npz", n_train=6, n_test=6))


def _published(folder: Path, name: str):
    """The files of a small data set, whose SHA-256 are those of what ``make_published`` wrote."""
    from ntkrobust_sk.datasets import loaders as datasets

    source, counts = getattr(datasets, name), {"train": (3,) * 10, "test": (2,) * 10}
    known = json.loads((folder.with_name("published.json")).read_text())
    return replace(source, counts=counts, sha256=known)


def make_published(name: str, suffix: str) -> Callable[[Path], None]:
    """Files of a data set's training examples, in its format."""

    def make(folder: Path) -> None:
        from ntkrobust_sk.datasets import loaders as datasets

        rng, source = np.random.default_rng(0), getattr(datasets, name)
        y = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), 3))
        pixels = rng.integers(0, 256, (30, *source.shape), dtype=np.uint8)
        if name == "CIFAR10":
            parts = np.split(np.column_stack([y, pixels.reshape(30, -1)]), 5)
            contents = [part.tobytes() for part in parts]
        else:
            arrays = pixels[:, 0], y
            contents = [struct.pack(f">{a.ndim + 1}I", 2048 + a.ndim, *a.shape) + a.tobytes() for a in arrays]
        known = {}
        for file, content in zip(source.files["train"], contents, strict=True):
            known[file] = hashlib.sha256(content).hexdigest()
            (folder / (file + suffix)).write_bytes(gzip.compress(content, mtime=0) if suffix else content)
        folder.with_name("published.json").write_text(json.dumps(known))

    return make


def read_published(name: str, load: str) -> Callable[[Path], Any]:
    """Return what the loader makes of them."""

    def read(folder: Path):
        from ntkrobust_sk.datasets import loaders as datasets

        whole = getattr(datasets, name)
        try:
            setattr(datasets, name, _published(folder, name))
            return getattr(datasets, load)(folder)
        finally:
            setattr(datasets, name, whole)

    return read


@cache
def _experiment():
    from ntkrobust_sk import KernelEvolution

    return KernelEvolution(
        network="mlp", n_train=30, n_test=20, n_kernel=10, epochs=1, flip_epoch=1, fractions=(0.5,), train_steps=1,
        test_steps=1, stage2_epochs=1, dynamics=("centered",), stage2=("benign",), n_features=1, batch_size=32,
        regimes=("benign",),
    )  # fmt: skip


@cache
def _finished_run() -> Path:
    """The folder of a run, made once in a process."""
    place = tempfile.TemporaryDirectory(prefix="fuzz-run-")
    atexit.register(place.cleanup)
    return _experiment().run(Path(place.name) / "run", progress=False).path


def make_run(folder: Path) -> None:
    """A finished run of a tiny experiment."""
    shutil.copytree(_finished_run(), folder / "run")


def make_stopped_run(folder: Path) -> None:
    """A run that was stopped before its last tasks, so that states and examples are read again."""
    make_run(folder)
    lines = (folder / "run" / "results.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "run" / "results.jsonl").write_bytes(b"".join(lines[:2]))


def read_run(folder: Path):
    """All that a run has found: results, kernels, images."""
    from ntkrobust_sk import load_evolution

    result = load_evolution(folder / "run")
    epochs = result.epochs(0, "benign")
    if epochs != sorted(epochs):
        raise AssertionError(f"epochs of {folder} are out of order")
    found = {record["task"]: record for record in result.results}
    found |= {f"kernel {epoch}": result.kernel(0, "benign", epoch) for epoch in epochs}
    images = result.images(0, "benign") if result.of_kind("images") else {}
    return found | images | {"experiment": result.experiment}


def right_part(found, expected) -> bool:
    """Tell whether all that is there is right, and nothing before it is gone: a run that has not ended."""
    tasks = [name for name, value in expected.items() if isinstance(value, dict)]
    there = [name for name in tasks if name in found]
    known = there == tasks[: len(there)] and found.keys() <= expected.keys()
    return known and same(found, {name: expected[name] for name in found})


def resume_run(folder: Path):
    """The same after the run has gone on."""
    with contextlib.redirect_stderr(io.StringIO()):
        _experiment().run(folder / "run", progress=False)
    return read_run(folder)


@cache
def _fitted():
    from sklearn.frozen import FrozenEstimator

    from ntkrobust_sk import MLP, AdversarialKernelTrainer, EmpiricalNTKClassifier

    X = np.random.default_rng(0).uniform(size=(12, 3)).astype(np.float32)
    trainer = AdversarialKernelTrainer(MLP(widths=(2,)), max_epochs=1, random_state=0).fit(X, np.arange(12) % 3)
    return EmpiricalNTKClassifier(FrozenEstimator(trainer)).fit(X, np.arange(12) % 3), X


def make_model(folder: Path) -> None:
    """A saved estimator (of skops: a file of joblib has no checksum, and runs whatever is in it)."""
    import skops.io

    skops.io.dump(_fitted()[0], folder / "model.skops")


def read_model(folder: Path):
    """Its scores."""
    from ntkrobust_sk.cli.saved_models import load_estimator

    return load_estimator(folder / "model.skops").decision_function(_fitted()[1])


def make_examples(folder: Path) -> None:
    """Adversarial examples of ``ntkrobust attack``."""
    from ntkrobust_sk import FGSM
    from ntkrobust_sk.cli.attacked_examples import attack_examples, write_examples

    estimator, X = _fitted()
    found = attack_examples(estimator, X, np.arange(12) % 3, FGSM(0.1))
    write_examples(folder / "adversarial.npz", found, {"attack": repr(FGSM(0.1))})


def read_examples(folder: Path):
    """Arrays and settings."""
    from ntkrobust_sk.cli.attacked_examples import read_examples

    return read_examples(folder / "adversarial.npz")


@cache
def _saved() -> dict[str, Any]:
    """What is saved, by the names of files: each of another class."""
    import jax.numpy as jnp

    from ntkrobust_sk import MLP, PGD, Box, EmpiricalNTKRegressor, Model, RobustFeatureSelector, Variables

    machine, X = _fitted()
    attack = PGD(0.1, n_steps=1, bounds=Box(0, float("inf"), mask=[True, False, True]))
    weights = {"dense_0": {"kernel": jnp.ones((3, 2), jnp.bfloat16), "bias": np.zeros(2, ">f4")}}
    regressor = EmpiricalNTKRegressor(MLP(widths=(2,)), kernel="pseudo", random_state=np.random.RandomState(0))
    selector = RobustFeatureSelector(MLP(widths=(2,)), attack=attack, n_features=2, n_candidates=3, random_state=0)
    return {
        "machine.ntk": machine,
        "model.ntk": Model(MLP(n_outputs=2, widths=()), Variables(weights)),
        "regressor.ntk": regressor.fit(X, X[:, :2]),
        "selector.ntk": selector.fit(X, np.arange(12) % 3),
    }


def make_saved(folder: Path) -> None:
    """Files of ``save``."""
    for name, thing in _saved().items():
        thing.save(folder / name)


def read_saved(folder: Path):
    """Everything in what is loaded, each by its own class."""
    from ntkrobust_sk.saving.tree import encoded

    return {name: encoded(type(thing).load(folder / name)) for name, thing in _saved().items()}


def make_forged(folder: Path) -> None:
    """The members of files of ``save``, unpacked."""
    make_saved(folder)
    for path in _files(folder, ".ntk"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(path.with_suffix(""))
        path.unlink()


def read_forged(folder: Path):
    """The same, of members with checksums that were made anew."""
    from ntkrobust_sk.saving.archive import MEMBERS, SUMS

    for name in _saved():
        path, sums = folder / name, ""
        with _unwatched(), zipfile.ZipFile(path, "w") as archive:
            for member in MEMBERS:
                content = (path.with_suffix("") / member).read_bytes() if member != SUMS else sums.encode()
                archive.writestr(member, content)
                sums += f"{hashlib.sha256(content).hexdigest()}  {member}\n"
    return read_saved(folder)


def _saved_kinds() -> dict[str, Kind]:
    from ntkrobust_sk.saving import SavedFileError

    of_saved = {"errors": (OSError, SavedFileError), "runs_code": False}
    return {
        "saved": Kind(make_saved, read_saved, **of_saved),
        "saved-forged": Kind(make_forged, read_forged, lambda found, expected: True, **of_saved),
    }


KINDS: dict[str, Kind] = {
    **_saved_kinds(),
    "run": Kind(make_run, read_run, right_part),
    "run-resumed": Kind(make_stopped_run, resume_run),
    "model": Kind(make_model, read_model),
    "adversarial": Kind(make_examples, read_examples),
    "store": Kind(make_store, read_store),
    "store-resumed": Kind(make_store, make_store),
    "store-unfinished": Kind(make_unfinished_store, make_store),
    "npz": Kind(make_npz, read_npz),
    "npz-large": Kind(make_large_npz, read_npz),
    "cifar": Kind(make_published("CIFAR10", ""), read_published("CIFAR10", "load_cifar10")),
    "mnist": Kind(make_published("MNIST", ""), read_published("MNIST", "load_mnist")),
    "mnist-gz": Kind(make_published("MNIST", ".gz"), read_published("MNIST", "load_mnist")),
}


# Running them.

# What was executed since it was last emptied; None while nobody asks.
_executed: list[str] | None = None


def _heard(event: str, arguments: tuple) -> None:
    if _executed is None:
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
    if writes or event in EXECUTING:
        _executed.append(f"{event} {str(arguments)[:80]}")


sys.addaudithook(_heard)


@contextlib.contextmanager
def _watched(on: bool):
    """Have what is executed in the block in a list."""
    global _executed
    before, _executed = _executed, [] if on else None
    try:
        yield _executed
    finally:
        _executed = before


def _unwatched():
    return _watched(False)


class HungError(BaseException):
    """Nothing came back in time."""


def _ring(signum, frame):
    raise HungError


@dataclass(frozen=True)
class Case:
    """The changes to the files of one kind, and what came of them."""

    kind: str
    number: int
    done: str
    outcome: str
    said: str

    def __str__(self) -> str:
        return f"{self.outcome:<8} --kinds {self.kind} --case {self.number}  [{self.done}]  {self.said}"


def run_case(name: str, number: int, seed: int, whole: Path, expected, *, show=False) -> Case:
    """Damage a copy of some files, read it, and say what came back."""
    kind, rng = KINDS[name], np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    folder = whole.with_name("case")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    done = "; ".join(mutate(rng, folder))
    outcome, said, executed = "right", "", None
    previous = signal.signal(signal.SIGALRM, _ring)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with _watched(not kind.runs_code) as executed:
                found = kind.read(folder)
        if not kind.right(found, expected):
            named = [str(warning.message) for warning in caught if str(folder) in str(warning.message)]
            outcome, said = ("warned", named[0]) if named else ("wrong", "")
    except HungError:
        outcome = "hung"
    except Exception as error:
        names = str(folder) in str(error)
        outcome = "refused" if names and isinstance(error, kind.errors) else "obscure"
        said = f"{type(error).__name__}: {error}".replace("\n", " ")
        if show:
            traceback.print_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    if executed:
        outcome, said = "executed", executed[0]
    return Case(name, number, done, outcome, said)


def run_kind(name: str, numbers, seed: int) -> list[Case]:
    """Cases of one kind."""
    with tempfile.TemporaryDirectory(prefix="fuzz-files-") as place:
        whole = Path(place).resolve() / "case"
        whole.mkdir()
        # made and first read at the place of the cases, whose path may be in the files
        KINDS[name].make(whole)
        whole = whole.rename(whole.with_name("whole"))
        shutil.copytree(whole, whole.with_name("case"))
        expected = KINDS[name].read(whole.with_name("case"))
        return [run_case(name, number, seed, whole, expected, show=len(numbers) == 1) for number in numbers]


def table(cases: list[Case]) -> str:
    """Counts by kind and outcome."""
    counts = Counter((kind, case.outcome) for case in cases for kind in (case.kind, "all"))
    rows = [("kind", *COLUMNS, "all")]
    for kind in dict.fromkeys([*(case.kind for case in cases), "all"]):
        found = [counts[kind, column] for column in COLUMNS]
        rows.append((kind, *found, sum(found)))
    return "\n".join(f"{row[0]:<20}" + "".join(f"{held:>9}" for held in row[1:]) for row in rows)


def of_saved(cases: list[Case]) -> str:
    """What came of files of ``save``, in one line."""
    counts = Counter(case.outcome for case in cases)
    there = f"{counts['right']:,} are equal to the original, {counts['refused']:,} raise our error"
    others = len(cases) - counts["right"] - counts["refused"]
    return f"{len(cases):,} mutated saved files: {there}; {others} do anything else, hang or execute"


def main(arguments=None) -> int:
    """Run what the command line asks for; 1 if anything was wrong, hung or obscure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=3000, help="cases, over all kinds together")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--case", type=int, default=None, help="only this one")
    parser.add_argument("--show", type=int, default=20, help="cases printed of those that are faults")
    asked = parser.parse_args(arguments)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    cases = []
    for at, kind in enumerate(asked.kinds):
        n = len(range(at, asked.n, len(asked.kinds)))
        # what hangs outside of Python ends the process with a traceback
        faulthandler.dump_traceback_later(60 + SECONDS * n, exit=True)
        resource.setrlimit(resource.RLIMIT_AS, (size + 2 * MEMORY, resource.RLIM_INFINITY))
        cases += run_kind(kind, range(n) if asked.case is None else [asked.case], asked.seed)
    faulthandler.cancel_dump_traceback_later()
    faults = [case for case in cases if case.outcome in FAULTS]
    for case in cases if asked.case is not None else faults[: asked.show]:
        print(case)
    print(f"\nseed {asked.seed}\n{table(cases)}")
    if any(case.kind == "saved" for case in cases):
        print(of_saved([case for case in cases if case.kind == "saved"]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
