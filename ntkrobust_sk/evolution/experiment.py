"""The paper's two-stage experiment: how kernels evolve in training, and what they are good for.

Stage 1 trains a network, benignly, adversarially, or first one and then the other, and keeps its states; at each
of them the kernel is measured. Stage 2 trains what some of those kernels can do: the network, its linearisation,
or the linearisation alone, benignly or adversarially (Loo et al. 2022, arXiv:2210.12030). Everything is kept in
one folder, and a stopped run goes on from there.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .. import __version__
from .._validation import brief, check_choice, check_path, number
from ..attacks.pgd import FGSM, NFGSM, PGD
from ..datasets.splits import Splits, load_splits, no_more, require_enough
from ..execution.interrupts import heard
from ..execution.memory import parse_memory
from ..kernels.fingerprint import hash_arrays
from ..networks.named import NETWORKS
from ..networks.precision import PRECISIONS
from ..tangent.linearization import DYNAMICS
from .results import EvolutionResult, brief_epochs
from .run_directory import RunDirectory
from .schedule import OrderedResults, Schedule
from .setting_checks import check_numbers, count_or_all, n_matrix, several, start_of_stage_two
from .states import States
from .tasks import Measurements, tasks_of
from .workers import Workplace, count_processes, share, started

REGIMES = ("benign", "adversarial", "flip")
STAGE2 = ("benign", "adversarial")
ATTACKS = ("pgd", "fgsm", "n-fgsm")
# Epochs between whole ones, where the kernel moves fastest; the paper's.
FRACTIONS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.5, 2.5)


@dataclass(frozen=True)
class KernelEvolution:
    """An experiment: its settings, which :meth:`run` carries out.

    Parameters
    ----------
    data : {"digits", "cifar10", "fashion-mnist", "mnist"} or path of an ``.npz`` file, default="digits"
        As for :func:`~ntkrobust_sk.datasets.load_splits`; inputs must lie in [0, 1].
    data_dir : path, default=None
        Folder with the canonical files.
    network : {"mlp", "cnn", "resnet18"}, default="cnn"
    n_train, n_test : int
        Examples for training and for scoring; all of the latter are attacked.
    n_kernel : int or "all", default=200
        Training examples, balanced over the classes, on which kernels are measured. "all" estimates effective
        rank, top mass and alignments on all of them, by some 40 products with a kernel that is never formed, with
        ``standard_errors`` in the record; the rest takes 200.
    epsilon : float, default=0.15
        L∞ radius, in units of the data.
    attack : {"pgd", "fgsm", "n-fgsm"}, default="pgd"
        The attack in training. Scores are always taken under PGD.
    train_steps, test_steps : int
        PGD steps in training and in scoring.
    clean_step : bool, default=True
        Adversarial training makes a clean update before each adversarial one, as the paper's code does.
    regimes : tuple of {"benign", "adversarial", "flip"}
        Trainings of stage 1. "flip" is the benign network, adversarially trained from ``flip_epoch`` on.
    epochs : int, default=20
        Epochs of stage 1.
    flip_epoch : int, default=None
        None is half of the epochs.
    fractions : tuple of float
        Epochs, besides the whole ones, at which states are kept.
    learning_rate, momentum, batch_size
        Settings of stochastic gradient descent.
    normalize : bool, default=False
        Normalise each channel by the training set, inside of the network, so that epsilon keeps its unit.
    average_decay : float, default=None
        Measure and score a moving average of the parameters; None takes them as they are.
    patience : int, default=None
        End a regime when the robust accuracy of ``n_validation`` training examples, held out, has not risen for
        so many epochs. None never does.
    n_validation : int, default=0
    stage2_from : tuple of (regime, epoch)
        Where stage 2 starts. None is the last epoch of the benign and of the adversarial network.
    stage2_epochs : int, default=10
    stage2_learning_rate : float, default=0.01
    dynamics : tuple of {"standard", "linearized", "centered"}
        Models that stage 2 trains.
    stage2 : tuple of {"benign", "adversarial"}
        Training of stage 2.
    freeze_state : bool, default=True
        Keep batch-norm statistics in stage 2 ("standard"; the others have none to move).
    alpha : float, default=1e-2
        Ridge of closed-form regression on the kernel set.
    n_features : int, default=10
        Number of the kernel's leading eigenfeatures that are scored one by one; see
        :func:`~ntkrobust_sk.analysis.ntk_features`. Inputs of the network are no part of them.
    memory : str or int, default="2GiB"
        Budget for kernels and closed-form regression, as for :func:`~ntkrobust_sk.gram`. Regression with the trace
        kernel of a ResNet-18 needs "8GiB". A run may go on with another one; last digits may then differ.
    precision : {"bf16", "tf32"}, default=None
        Of products, in training, attacks, scoring and kernels: see :class:`~ntkrobust_sk.MixedPrecision`.
    seeds : int, default=1
        Repetitions; they share data and differ in initial weights, data order and attack noise.
    random_state : int, default=0

    Raises
    ------
    ValueError
        For settings that do not fit each other.

    Examples
    --------
    >>> KernelEvolution(epochs=2, fractions=(0.5,)).checkpoints
    (0.0, 0.5, 1.0, 2.0)
    """

    data: str = "digits"
    data_dir: str | None = None
    network: str = "cnn"
    n_train: int = 1397
    n_test: int = 400
    n_kernel: int | str = 200
    epsilon: float = 0.15
    attack: str = "pgd"
    train_steps: int = 10
    test_steps: int = 20
    clean_step: bool = True
    regimes: tuple[str, ...] = REGIMES
    epochs: int = 20
    flip_epoch: int | None = None
    fractions: tuple[float, ...] = FRACTIONS
    learning_rate: float = 0.05
    momentum: float = 0.9
    batch_size: int = 128
    normalize: bool = False
    average_decay: float | None = None
    patience: int | None = None
    n_validation: int = 0
    stage2_from: tuple[tuple[str, float], ...] | None = None
    stage2_epochs: int = 10
    stage2_learning_rate: float = 0.01
    dynamics: tuple[str, ...] = DYNAMICS
    stage2: tuple[str, ...] = STAGE2
    freeze_state: bool = True
    alpha: float = 1e-2
    n_features: int = 10
    memory: str | int = "2GiB"
    precision: str | None = None
    seeds: int = 1
    random_state: int = 0

    def __post_init__(self):
        for name, known in (("regimes", REGIMES), ("dynamics", DYNAMICS), ("stage2", STAGE2)):
            object.__setattr__(self, name, several(name, getattr(self, name)))
            for value in getattr(self, name):
                check_choice(f"entry of {name}", value, known)
        check_choice("attack", self.attack, ATTACKS)
        check_choice("network", self.network, NETWORKS)
        if self.precision is not None:
            check_choice("precision", self.precision, PRECISIONS, "None")
        parse_memory(self.memory)
        object.__setattr__(self, "n_kernel", count_or_all("n_kernel", self.n_kernel))
        check_numbers(self)
        check_path("data", self.data)
        if self.data_dir is not None:
            check_path("data_dir", self.data_dir)
        if "flip" in self.regimes and "benign" not in self.regimes:
            raise ValueError("regime 'flip' starts from the benign network: regimes must hold 'benign' too")
        fractions = several("fractions", self.fractions)
        object.__setattr__(self, "fractions", tuple(number("each of fractions", f, low=0) for f in fractions))
        beyond = [f for f in self.fractions if f > self.epochs]
        if beyond and self.fractions != FRACTIONS:
            raise ValueError(
                f"fractions must be epochs of stage 1, 0 to {self.epochs}, got {brief_epochs(beyond)}"
            )
        kept = brief_epochs(self.checkpoints)
        if self.flips_at not in self.checkpoints:
            raise ValueError(f"flip_epoch must be an epoch that is kept, {kept}, got {self.flip_epoch}")
        if (self.patience is None) != (self.n_validation == 0):
            raise ValueError(
                "patience and n_validation go together: examples held out, and how many epochs their robust "
                f"accuracy may fail to rise; got {self.patience} and {self.n_validation}"
            )
        if self.stage2_from is not None:
            object.__setattr__(
                self, "stage2_from", tuple(map(start_of_stage_two, several("stage2_from", self.stage2_from)))
            )
        for regime, epoch in self.starts:
            check_choice("regime in stage2_from", regime, self.regimes)
            if epoch not in self.checkpoints:
                raise ValueError(
                    f"stage2_from asks for epoch {epoch:g}, but kept are {kept}. Add it to fractions, or raise "
                    "epochs"
                )

    @cached_property
    def checkpoints(self) -> tuple[float, ...]:
        """Compute the epochs at which states are kept and kernels measured."""
        fractions = (f for f in self.fractions if 0 < f < self.epochs)
        return tuple(sorted({*map(float, range(self.epochs + 1)), *fractions}))

    @cached_property
    def flips_at(self) -> float:
        """Return the epoch at which the "flip" regime turns adversarial."""
        return float(self.epochs // 2 if self.flip_epoch is None else self.flip_epoch)

    @cached_property
    def starts(self) -> tuple[tuple[str, float], ...]:
        """List where stage 2 starts, as (regime, epoch)."""
        if self.stage2_from is not None:
            return self.stage2_from
        return tuple((regime, float(self.epochs)) for regime in self.regimes if regime != "flip")

    @cached_property
    def train_attack(self) -> PGD | FGSM | NFGSM:
        """Make the attack in training."""
        made = {"pgd": partial(PGD, n_steps=self.train_steps), "fgsm": FGSM, "n-fgsm": NFGSM}
        return made[self.attack](self.epsilon)

    @cached_property
    def test_attack(self) -> PGD:
        """Make the attack in scoring."""
        return PGD(self.epsilon, n_steps=self.test_steps)

    def run(
        self,
        out: str | os.PathLike,
        *,
        splits: Splits | None = None,
        progress: bool = True,
        n_jobs: int | None = None,
    ) -> EvolutionResult:
        """Run the experiment, or what is left of it.

        Parameters
        ----------
        out : path
            The run's folder; one that holds the same experiment is gone on with, also with more seeds.
        splits : Splits, default=None
            Data in place of what ``data`` names.
        progress : bool, default=True
            Show a bar.
        n_jobs : int, default=None
            Processes that share the tasks, by joblib: loky, or Dask inside of
            ``joblib.parallel_config(backend="dask")``; -1 is all cores, None is 1 unless joblib is set to more.
            The folder gets the same bytes from any number of them. Each takes ``memory`` for itself, and where
            there are several GPUs one of them.

        Returns
        -------
        EvolutionResult

        Raises
        ------
        RunMismatchError
            If the folder holds another experiment.
        FolderInUseError
            If another process writes into it.
        TrainingDivergedError
            When training does; what was finished is kept.
        RuntimeError
            If one task has lost its worker more than three times.

        Warns
        -----
        RuntimeWarning
            When a worker was lost, such as one that the system has killed for its memory; its task is done again.
        """
        n_workers, out = count_processes(n_jobs), check_path("out", out)
        if splits is not None and not isinstance(splits, Splits):
            raise TypeError(f"splits must be Splits(X, y, X_test, y_test), got {brief(splits)}")
        splits = splits or load_splits(
            self.data, self.data_dir, n_train=self.n_train, n_test=self.n_test, random_state=self.random_state
        )
        experiment = self.fitting(len(splits.y), len(np.unique(splits.y)))
        require_enough(splits.y, min(n_matrix(experiment.n_kernel), len(splits.y)))
        with heard(), RunDirectory.session(out, settings_of(experiment, splits)) as run:
            written = run.results()
            measurements = Measurements(States(experiment, run, splits), [*run.waiting.read(), *written])
            measurements.forget_what_has_lost_its_files()
            tasks, records, label = tasks_of(experiment), measurements.records, f"evolution of {self.data}"
            there = {record["task"] for record in written} & records.keys()
            results = OrderedResults(run, [task.name for task in tasks], records, there)
            left = [task for task in tasks if task.name not in records]
            bar = {"total": len(tasks), "initial": len(tasks) - len(left), "desc": label, "unit": "task"}
            with tqdm(**bar, disable=not progress) as bar:
                if (n_workers := min(n_workers, len(left))) > 1:
                    with started(Workplace(experiment, run.path.absolute(), splits), n_workers) as workers:
                        share(Schedule(measurements.states, records), results, workers, bar)
                    left = []
                for task in left:
                    bar.set_postfix_str(task.name)
                    results.add(measurements.take(task))
                    bar.update()
        return load_evolution(out)

    def fitting(self, n_train: int, n_classes: int) -> KernelEvolution:
        """Return the experiment with no more kernel examples and eigenfeatures than there can be, and warn of it.

        >>> KernelEvolution(n_kernel=200, n_features=0).fitting(200, 10).n_kernel
        200
        """
        left = n_train - self.n_validation
        if self.n_validation and left < n_classes:
            raise ValueError(
                f"n_validation={self.n_validation:,} leaves {max(left, 0):,} of {n_train:,} training examples "
                f"for {n_classes} classes; ask for fewer"
            )
        n_kernel = self.n_kernel
        if not isinstance(n_kernel, str):
            n_kernel = no_more("n_kernel", n_kernel, left, "training examples")
        n_features = no_more(
            "n_features", self.n_features, min(n_matrix(n_kernel), left), "eigenvectors of the kernel"
        )
        return replace(self, n_kernel=n_kernel, n_features=n_features)


LARGER = {"n_train": 5000, "n_test": 500, "test_steps": 20, "epochs": 10}
# Settings that suit a data set; a file of the user's own takes the defaults.
PRESETS = {
    "digits": {},
    "mnist": LARGER | {"epsilon": 0.1},
    "fashion-mnist": LARGER | {"epsilon": 0.05},
    "cifar10": LARGER | {"epsilon": 4 / 255, "train_steps": 7},
}


def preset(data: str = "digits", **given: Any) -> KernelEvolution:
    """Return the experiment that suits a data set, with whatever is given (not None) in its place.

    >>> preset("cifar10", epochs=None, seeds=3).epochs
    10
    """
    given = {name: value for name, value in given.items() if value is not None}
    return KernelEvolution(data=str(data), **PRESETS.get(data, {}) | given)


def settings_of(experiment: KernelEvolution, splits: Splits) -> dict[str, Any]:
    """List what two runs must agree in to be the same; a run may get more seeds, and its data may have moved."""
    free = ("seeds", "data_dir", "memory")
    settings = {f.name: getattr(experiment, f.name) for f in fields(experiment) if f.name not in free}
    return settings | {"sha256_data": hash_arrays(splits), "version": __version__}


def load_evolution(path: str | os.PathLike) -> EvolutionResult:
    """Read the results in a run's folder, finished or not; nothing is written there.

    Parameters
    ----------
    path : path

    Returns
    -------
    EvolutionResult

    Warns
    -----
    RuntimeWarning
        If results are gone of tasks that come before others which are there.

    Raises
    ------
    FileNotFoundError
        If there is no run.
    DamagedRunError
        If settings or results are not what was written; the message names the file, and the line.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     KernelEvolution(regimes=()).run(folder, progress=False) == load_evolution(folder)
    True
    """
    run = RunDirectory(check_path("path", path))
    known = {field.name for field in fields(KernelEvolution)}
    settings = {name: value for name, value in run.settings.items() if name in known}
    results = run.results()
    experiment = KernelEvolution(**settings, seeds=1 + max((result["seed"] for result in results), default=0))
    if gone := _skipped(experiment, {result["task"] for result in results}):
        warnings.warn(
            f"{run.path / 'results.jsonl'} lacks {len(gone)} results of tasks that come before others which are "
            f"there, the first of them {gone[0]!r}; run the experiment again, and only these are computed",
            RuntimeWarning,
            stacklevel=2,
        )
    return EvolutionResult(run.path, experiment, results)


def _skipped(experiment, there) -> list[str]:
    """List tasks that have no result though a later one has: a run that was stopped has none such."""
    names = [task.name for task in tasks_of(experiment)]
    last = max((at for at, name in enumerate(names) if name in there), default=0)
    return [name for name in names[:last] if name not in there]
