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
from functools import cached_property
from typing import Any, cast

from .._validation import check_path, flag
from ..attacks.pgd import PGD
from ..datasets.splits import Splits, no_more
from ..tangent.linearization import DYNAMICS
from .own_objects import OBJECTS, Stated
from .results import EvolutionResult
from .run_directory import RunDirectory
from .run_settings import settings_of as settings_of
from .run_settings import settings_there
from .running import carry_out
from .schedule import skipped
from .setting_checks import ATTACKS as ATTACKS
from .setting_checks import FRACTIONS, RATES, STAGE2, check_settings, n_matrix, named_attack
from .setting_checks import REGIMES as REGIMES
from .workers import count_processes


@dataclass(frozen=True)
class KernelEvolution:
    """An experiment: its settings, which :meth:`run` carries out.

    Parameters
    ----------
    data : {"digits", "cifar10", "fashion-mnist", "mnist"} or path, default="digits"
        Of an ``.npz`` file or a folder of images by class, as for
        :func:`~ntkrobust_sk.datasets.load_splits`; inputs must lie in [0, 1].
    data_dir : path, default=None
        Folder with the canonical files.
    image_size : int or (h, w), default=None
        Size to which the images of a folder are brought; None asks for images of one size.
    network : {"mlp", "cnn", "resnet18"}, "module:name", network or Model, default="cnn"
        An object is a :class:`Network`, such as ``MLP(widths=(64,))``, one of your own, or ``from_flax(module)``.
        ``"module:name"`` says where it is imported from, or made by calling what is there without arguments. The
        number of outputs may be left open (``n_outputs=None``). The weights of a Model are the first ones of every
        seed.
    n_train : int, default=1397
        Examples for training.
    n_test : int, default=400
        Examples for scoring; all of them are attacked.
    n_kernel : int or "all", default=200
        Training examples, balanced over the classes, on which kernels are measured. "all" estimates effective
        rank, top mass and alignments on all of them, by some 40 products with a kernel that is never formed, with
        ``standard_errors`` in the record; the rest takes 200.
    epsilon : float, default=None
        Radius in scoring, and of an attack in training that is given by its name, in units of the data. None is
        that of ``attack`` if it is an object that states one, otherwise 0.15.
    attack : {"pgd", "fgsm", "n-fgsm"} or attack, default="pgd"
        The attack in training. An object is a frozen dataclass that is called as those of this library are, such
        as ``PGD(8 / 255, n_steps=7)`` or one of your own. Scores are always taken under PGD.
    norm : {"linf", "l2", "l1"}, default=None
        Of the ball around each example, in training and in scoring. None is that of ``attack`` if it is an object
        that states one, otherwise "linf".
    train_steps, test_steps : int
        PGD steps in training (for an attack that is given by its name) and in scoring.
    clean_step : bool, default=True
        Adversarial training makes a clean update before each adversarial one, as the paper's code does.
    regimes : tuple of {"benign", "adversarial", "flip"}
        Trainings of stage 1. "flip" is the benign network, adversarially trained from ``flip_epoch`` on.
    epochs : int, default=20
        Epochs of stage 1; 0 measures the kernels at initialisation alone.
    flip_epoch : int, default=None
        None is half of the epochs.
    fractions : tuple of float
        Epochs, besides the whole ones, at which states are kept.
    learning_rate : float, default=None
        Of stage 1, for an optimiser that is given by its name. None is 0.05 for "sgd", 0.001 for "adam", "adamw".
    momentum : float, default=None
        Of "sgd", which alone has one. None is 0.9.
    batch_size : int, default=128
    optimizer : {"sgd", "adam", "adamw"} or optax.GradientTransformation, default="sgd"
        Of both stages, as in :class:`~ntkrobust_sk.AdversarialKernelTrainer`. One of optax has its own learning
        rate; the run's folder states it by its code and does not hold it.
    normalize : bool, default=False
        Normalise each channel by the training set, inside of the network, so that epsilon keeps its unit.
    average_decay : float, default=None
        Measure and score a moving average of the parameters; None takes them as they are.
    patience : int, default=None
        End a regime when the robust accuracy of ``n_validation`` training examples, held out, has not risen for
        so many epochs. None never does.
    n_validation : int, default=0
        Training examples held out for ``patience``.
    stage2_from : tuple of (regime, epoch)
        Where stage 2 starts. None is the last epoch of the benign and of the adversarial network.
    stage2_epochs : int, default=10
    stage2_learning_rate : float, default=None
        None is 0.01 for "sgd", and the learning rate of stage 1 for "adam" and "adamw".
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
    TypeError
        For a network or an attack that is none.

    Examples
    --------
    >>> KernelEvolution(epochs=2, fractions=(0.5,)).checkpoints
    (0.0, 0.5, 1.0, 2.0)
    >>> from ntkrobust_sk import MLP, PGD
    >>> KernelEvolution(network=MLP(widths=(64,)), attack=PGD(0.5, norm="l2")).test_attack
    PGD(epsilon=0.5, n_steps=20, step_size=None, norm='l2', random_start=True, n_restarts=1, bounds=(0.0, 1.0))
    """

    data: str = "digits"
    data_dir: str | None = None
    image_size: Any = None
    network: Any = "cnn"
    n_train: int = 1397
    n_test: int = 400
    n_kernel: int | str = 200
    epsilon: float | None = None
    attack: Any = "pgd"
    norm: str | None = None
    train_steps: int = 10
    test_steps: int = 20
    clean_step: bool = True
    regimes: tuple[str, ...] = REGIMES
    epochs: int = 20
    flip_epoch: int | None = None
    fractions: tuple[float, ...] = FRACTIONS
    learning_rate: float | None = None
    momentum: float | None = None
    batch_size: int = 128
    normalize: bool = False
    average_decay: float | None = None
    patience: int | None = None
    n_validation: int = 0
    stage2_from: tuple[tuple[str, float], ...] | None = None
    stage2_epochs: int = 10
    stage2_learning_rate: float | None = None
    dynamics: tuple[str, ...] = DYNAMICS
    stage2: tuple[str, ...] = STAGE2
    freeze_state: bool = True
    alpha: float = 1e-2
    n_features: int = 10
    memory: str | int = "2GiB"
    precision: str | None = None
    seeds: int = 1
    random_state: int = 0
    optimizer: Any = "sgd"

    def __post_init__(self):
        check_settings(self)

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
    def train_attack(self) -> Any:
        """Return the attack in training."""
        return self.attack if not isinstance(self.attack, str) else named_attack(self)

    @cached_property
    def test_attack(self) -> PGD:
        """Make the attack in scoring."""
        return PGD(cast(float, self.epsilon), n_steps=self.test_steps, norm=cast(str, self.norm))

    def run(
        self,
        out: str | os.PathLike,
        *,
        splits: Splits | None = None,
        progress: bool = True,
        n_jobs: int | None = None,
        from_: str | os.PathLike | None = None,
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
        from_ : path, default=None
            The folder of a run with other settings. What these have no say in is taken over, to the bit as it
            would be computed: states of training, kernels, models, results. A line that says what is printed.

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
        out, progress = check_path("out", out), flag("progress", progress)
        from_ = None if from_ is None else check_path("from_", from_)
        carry_out(self, out, splits, progress, count_processes(n_jobs), from_)
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
    >>> sizes = {"n_train": 20, "n_test": 10, "n_kernel": 10, "network": "mlp", "n_features": 0}
    >>> at_first = KernelEvolution(**sizes, regimes=("benign",), epochs=0, stage2_from=())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     at_first.run(folder, progress=False) == load_evolution(folder)
    True
    """
    run = RunDirectory(check_path("path", path))
    results = run.results()
    seeds = 1 + max((result["seed"] for result in results), default=0)
    experiment = KernelEvolution(**settings_there(run, _names()), seeds=seeds)
    if gone := skipped(experiment, {result["task"] for result in results}):
        warnings.warn(
            f"{run.path / 'results.jsonl'} lacks {len(gone)} results of tasks that come before others which are "
            f"there, the first of them {gone[0]!r}; run the experiment again, and only these are computed",
            RuntimeWarning,
            stacklevel=2,
        )
    return EvolutionResult(run.path, experiment, results)


def load_experiment(out: str | os.PathLike, **objects: Any) -> KernelEvolution:
    """Read the experiment in a run's folder, with all that it takes to go on: ``load_experiment(out).run(out)``.

    Parameters
    ----------
    out : path
    **objects : network, attack, optimizer
        Objects that the folder states and does not hold: an optimiser of optax, and a network or an attack whose
        class has no name in files.
        Those of this library, and those that :func:`~ntkrobust_sk.saved_as` has registered, are made again; a
        network that was named as ``module:name`` is imported when the experiment is run.

    Returns
    -------
    KernelEvolution
        With the folder's settings, seeds and memory. Its ``data`` is the path at which the file was, and
        ``data_dir`` the folder.

    Raises
    ------
    FileNotFoundError
        If there is no run.
    DamagedRunError
        If the settings are not what was written.
    ValueError
        If an object is stated, and neither in the folder nor given.

    Warns
    -----
    RuntimeWarning
        If the run is of a version that did not state seeds, memory and where the data are; defaults stand in their
        place, and the number of seeds is that of those that have begun.

    Examples
    --------
    >>> import tempfile
    >>> sizes = {"n_train": 20, "n_test": 10, "n_kernel": 10, "network": "mlp", "n_features": 0}
    >>> at_first = KernelEvolution(**sizes, regimes=("benign",), epochs=0, stage2_from=(), memory="1GiB")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = at_first.run(folder, progress=False)
    ...     load_experiment(folder) == at_first
    True
    """
    run = RunDirectory(check_path("out", out))
    if unknown := sorted(objects.keys() - {*OBJECTS}):
        taken = ", ".join(OBJECTS)
        raise TypeError(f"load_experiment takes {taken} besides the folder, got {', '.join(unknown)}")
    more = run.going_on
    named = {name: more[name] for name in ("network",) if more.get(name)}
    settings = settings_there(run, _names()) | named
    if "optimizer" in objects and objects["optimizer"] != settings.get("optimizer", "sgd"):
        # another one does not take these over
        settings |= dict.fromkeys(RATES)
    settings |= objects
    for name, value in settings.items():
        if isinstance(value, Stated):
            raise value.missing(name)
    if not more:
        seeds = 1 + max((result["seed"] for result in run.results()), default=0)
        warnings.warn(
            f"{run.path} is of a version that did not state seeds, memory and data_dir: taken are seeds={seeds}, "
            "memory='2GiB' and data_dir=None; write replace(experiment, seeds=...) for others",
            RuntimeWarning,
            stacklevel=2,
        )
        return KernelEvolution(**settings, seeds=seeds)
    free = {name: more[name] for name in ("seeds", "memory", "data_dir")}
    return KernelEvolution(**settings | free | ({} if more["data"] is None else {"data": more["data"]}))


def _names() -> tuple[str, ...]:
    return tuple(field.name for field in fields(KernelEvolution))
