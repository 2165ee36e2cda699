"""The results of a run: its records as tables, its kernels, and how they moved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np

from .._validation import brief, check_choice
from ..analysis import metrics
from ..kernels.fingerprint import hash_arrays
from ..kernels.store import read_gram
from . import records
from .result_lines import DamagedRunError
from .run_directory import RunDirectory

if TYPE_CHECKING:
    import pandas

    from .experiment import KernelEvolution

# Kinds of images that kernels are measured on.
IMAGES = ("clean", "adversarial")


class AccuracyRow(NamedTuple):
    """A row of the table of accuracies: a predictor, and its accuracies in each seed."""

    start: str
    dynamics: str
    training: str
    clean: list[float]
    robust: list[float]
    robust_restarts: list[float]

    def cells(self) -> list[str]:
        """Write the row as text: means over seeds, with standard deviations where there are several."""
        return [self.start, self.dynamics, self.training, *map(_mean, self[3:])]


@dataclass(frozen=True)
class EvolutionResult:
    """The results of a run so far.

    Attributes
    ----------
    path : Path
        The run's folder.
    experiment : KernelEvolution
        Its settings.
    results : list of dict
        Each with its ``kind``: "checkpoint", "stage 2", "closed form", "transfer", "features", "images" or
        "stopped"; the keys of each kind are in ``evolution/records.py``.

    Examples
    --------
    >>> from pathlib import Path
    >>> from ntkrobust_sk import EvolutionResult, KernelEvolution
    >>> state = {"kind": "checkpoint", "seed": 0, "regime": "benign", "clean_accuracy": 0.9}
    >>> states = [state | {"epoch": epoch} for epoch in (1.0, 0.0)]
    >>> result = EvolutionResult(Path("run"), KernelEvolution(), states)
    >>> result.epochs(seed=0, regime="benign")
    [0.0, 1.0]
    >>> result.of_kind("checkpoint", epoch=1.0)[0]["clean_accuracy"]
    0.9
    """

    path: Path
    experiment: KernelEvolution
    results: list[records.Record]

    @overload
    def of_kind(self, kind: Literal["checkpoint"], **where: Any) -> list[records.Checkpoint]: ...
    @overload
    def of_kind(self, kind: Literal["stopped"], **where: Any) -> list[records.Stopped]: ...
    @overload
    def of_kind(self, kind: Literal["closed form"], **where: Any) -> list[records.ClosedForm]: ...
    @overload
    def of_kind(self, kind: Literal["stage 2"], **where: Any) -> list[records.SecondStage]: ...
    @overload
    def of_kind(self, kind: Literal["transfer"], **where: Any) -> list[records.Transfer]: ...
    @overload
    def of_kind(self, kind: Literal["features"], **where: Any) -> list[records.Features]: ...
    @overload
    def of_kind(self, kind: Literal["images"], **where: Any) -> list[records.Images]: ...
    @overload
    def of_kind(self, kind: str, **where: Any) -> list[Any]: ...
    def of_kind(self, kind: str, **where: Any) -> list[Any]:
        """Select the results of a kind with these values."""
        found = (result for result in self.results if result["kind"] == kind)
        return [result for result in found if all(result[name] == value for name, value in where.items())]

    def to_frame(self, kind: str = "checkpoint") -> pandas.DataFrame:
        """Return the results of a kind as a tidy table: a row for each, a column for each number.

        Raises
        ------
        ImportError
            Without pandas.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("tables need pandas: pip install 'ntkrobust_sk[evolution]'") from error
        rows = [
            {name: value for name, value in result.items() if not isinstance(value, dict | list)}
            for result in self.of_kind(kind)
        ]
        return pandas.DataFrame(rows).drop(columns=["task", "kind"], errors="ignore")

    def accuracies(self) -> list[AccuracyRow]:
        """Return the accuracies of the networks at their last epochs, and of what stage 2 made of them."""
        rows = []
        for regime in self.experiment.regimes:
            ends = [(s, epochs[-1]) for s in range(self.experiment.seeds) if (epochs := self.epochs(s, regime))]
            if ends:
                name = f"{regime} network, epoch {ends[0][1]:g}"
                rows.append(_row(name, "stage 1", "", [self.at(seed, regime, epoch) for seed, epoch in ends]))
        second = {}
        for record in [*self.of_kind("closed form"), *self.of_kind("stage 2")]:
            how = (record["dynamics"], record["training"]) if record["kind"] == "stage 2" else ()
            second.setdefault((f"{record['regime']} kernel, epoch {record['epoch']:g}", how), []).append(record)
        for (start, how), found in sorted(second.items()):
            dynamics, training = how or ("closed form", "benign")
            rows.append(_row(start, dynamics, training, found))
        return rows

    def epochs(self, seed: int, regime: str) -> list[float]:
        """Return the epochs at which a kernel was measured; those of "flip" begin with the benign ones."""
        # lines come in another order where some were computed again
        own = sorted(result["epoch"] for result in self.of_kind("checkpoint", seed=seed, regime=regime))
        if regime != "flip" or not own:
            return own
        return [epoch for epoch in self.epochs(seed, "benign") if epoch < own[0]] + own

    def at(self, seed: int, regime: str, epoch: float) -> records.Checkpoint:
        """Return the measurements of one state."""
        found = self.of_kind("checkpoint", seed=seed, regime=self.kept_as(regime, epoch), epoch=epoch)
        if not found:
            raise LookupError(
                f"{self.path} has no epoch {epoch:g} of {regime!r} with seed {seed}; there are "
                f"{brief_epochs(self.epochs(seed, regime))}"
            )
        return found[0]

    def kernel(self, seed: int, regime: str, epoch: float, images: str = "clean") -> np.ndarray:
        """Read a state's trace kernel (n_kernel, n_kernel), on clean images or on those attacked through it."""
        check_choice("images", images, IMAGES)
        stated = self.at(seed, regime, epoch)["kernels"][images]
        store = self.path / "kernels" / kernel_name(seed, self.kept_as(regime, epoch), epoch, images)
        return read_kernel(store, stated)

    def kept_as(self, regime: str, epoch: float) -> str:
        """Return the regime that keeps a state: those of "flip" before it turns are the benign ones."""
        return "benign" if regime == "flip" and epoch <= self.experiment.flips_at else regime

    def curve(self, seed: int, regime: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return epochs and a measurement over them, such as "clean_effective_rank" or "robust"."""
        check_choice("name", name, self.measured(seed, regime))
        epochs = self.epochs(seed, regime)
        return np.array(epochs), np.array([self.at(seed, regime, epoch)[name] for epoch in epochs])

    def measured(self, seed: int, regime: str) -> list[str]:
        """List the numbers that are measured at each state of a regime."""
        first = self.at(seed, regime, self.epochs(seed, regime)[0])
        return [name for name, value in first.items() if isinstance(value, float | int)]

    def velocity(self, seed: int, regime: str, images: str = "clean") -> tuple[np.ndarray, np.ndarray]:
        """Compute the kernel velocity per epoch, at the middle of each interval between measurements."""
        epochs, kernels = self._kernels(seed, regime, images)
        steps = zip(kernels, kernels[1:], np.diff(epochs), strict=False)
        velocity = [metrics.kernel_velocity(a, b, float(dt)) for a, b, dt in steps]
        return (epochs[1:] + epochs[:-1]) / 2, np.array(velocity)

    def polar(self, seed: int, regime: str, images: str = "clean") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute epochs, radius and angle of the kernel's way from first to last; see ``polar_dynamics``."""
        epochs, kernels = self._kernels(seed, regime, images)
        radius, angle = zip(*(metrics.polar_dynamics(K, kernels[0], kernels[-1]) for K in kernels), strict=True)
        return epochs, np.array(radius), np.array(angle)

    def _kernels(self, seed, regime, images):
        epochs = self.epochs(seed, regime)
        return np.array(epochs), [self.kernel(seed, regime, epoch, images) for epoch in epochs]

    def distances(self, states: Iterable[tuple[int, str, float]], images: str = "clean") -> np.ndarray:
        """Compute the kernel distances between all pairs of states (seed, regime, epoch), (s, s)."""
        kernels = [self.kernel(*state, images=images) for state in states]
        found = np.zeros((len(kernels), len(kernels)))
        for i, j in combinations(range(len(kernels)), 2):
            found[i, j] = found[j, i] = metrics.kernel_distance(kernels[i], kernels[j])
        return found

    def images(self, seed: int, regime: str) -> dict[str, np.ndarray]:
        """Read images of the classes' directions, ``(C, *input_shape)`` each: "regression" and "eigenvector"."""
        return RunDirectory(self.path).arrays("images", f"seed-{seed}", f"{regime}.safetensors")


def _mean(values) -> str:
    if not values:
        return ""
    if not np.isfinite(values).all():
        return "not finite"
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def _row(start, dynamics, training, found) -> AccuracyRow:
    names = ("clean", "robust", "robust_restarts")
    return AccuracyRow(start, dynamics, training, *([r[name] for r in found if name in r] for name in names))


def read_kernel(store: Path, stated: str) -> np.ndarray:
    """Read the matrix in a store whose checksum is the one that its result states.

    Raises
    ------
    DamagedRunError, DamagedTileError, FileNotFoundError
        If it is not, is damaged or is not there; each names the store.
    """
    K = read_gram(store)
    if hash_arrays([K]) != stated:
        raise DamagedRunError(
            f"{store} does not hold the kernel that was measured; run the experiment again, and only this is "
            "computed anew"
        )
    return K


def require_result(result: EvolutionResult) -> EvolutionResult:
    """Return the results of a run, or raise a TypeError that says what came and what to write instead.

    >>> require_result("runs/digits")
    Traceback (most recent call last):
    TypeError: result must be an EvolutionResult, got 'runs/digits'; write load_evolution('runs/digits')
    """
    if isinstance(result, type) or not _has(result, "path", "experiment", "of_kind"):
        way = (
            f"; write load_evolution({result!r})"
            if isinstance(result, str | Path)
            else ", as load_evolution gives"
        )
        raise TypeError(f"result must be an EvolutionResult, got {brief(result)}{way}")
    return result


def _has(value, *names) -> bool:
    try:
        return all(hasattr(value, name) for name in names)
    except Exception:  # a stranger's property may raise anything
        return False


def kernel_name(seed: int, regime: str, epoch: float, images: str) -> str:
    """Name the Gram store of a state in a run's folder of kernels."""
    return f"seed-{seed}-{regime}-{epoch:08.3f}-{images}.zarr"


def brief_epochs(epochs: Iterable[float]) -> str:
    """Show epochs in an error message: all, or the first and the last."""
    shown = [f"{epoch:g}" for epoch in epochs]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:5], "...", *shown[-3:]])
