"""The paper's two-stage experiment: how kernels evolve in training, and what they are good for.

Stage 1 trains a network, benignly, adversarially, or first one and then the other, and keeps its states; at each
of them the kernel is measured. Stage 2 trains what some of those kernels can do: the network, its linearisation,
or the linearisation alone, benignly or adversarially (Loo et al. 2022, arXiv:2210.12030). Everything is kept in
one folder, and a stopped run goes on from there.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path

import jax
import numpy as np
from tqdm.auto import tqdm

from . import __version__
from ._validation import LARGEST_SEED, check_choice, flag, integer, number
from ._validation import brief as shown
from ._validation import path as check_path
from .analysis.eigenfeature_images import class_eigenvectors, eigenfeature_images, regression_coefficients
from .analysis.eigenfeatures import ntk_features
from .attacks.pgd import FGSM, NFGSM, PGD, Clean
from .attacks.tiled import attack_in_tiles
from .datasets.splits import Splits, load_splits
from .datasets.subsets import chosen_indices, no_more, require_enough
from .evolution_result import IMAGES, EvolutionResult, brief, kernel_name, read_kernel
from .execution.interrupts import heard
from .execution.memory import parse_memory
from .execution.tiles import MACHINE_ROWS, NETWORK_ROWS, evaluate
from .kernels.fingerprint import hash_arrays
from .kernels.gram_matrix import gram
from .kernels.ntk import resolve_kernel
from .kernels.predictors import make_predictor
from .measurements import accuracy, class_correlations, class_metrics, kernel_metrics
from .networks.model import Model
from .networks.named import NETWORKS, initial_model
from .networks.wrappers import Normalized
from .rundir import RunDirectory
from .solvers.ridge import solve
from .tangent.linearization import DYNAMICS, linearize
from .training.checkpoints import DamagedCheckpointError
from .training.resumable import Stage, kept_states, state_file
from .training.state import averaged

REGIMES = ("benign", "adversarial", "flip")
STAGE2 = ("benign", "adversarial")
ATTACKS = ("pgd", "fgsm", "n-fgsm")
# Between whole epochs, where the kernel moves fastest; the paper's.
FRACTIONS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.5, 2.5)
# Further restarts of the attack that stage 2 is scored with.
RESTARTS = 4
# Of signed-gradient ascent on an image; half of them cross the range of the pixels.
IMAGE_STEPS = 50


@dataclass(frozen=True)
class KernelEvolution:
    """The settings of an experiment, and the experiment.

    Parameters
    ----------
    data : {"digits", "cifar10", "fashion-mnist", "mnist"} or path of an ``.npz`` file, default="digits"
        As for :func:`~ntkrobust_sk.datasets.load_splits`; inputs must lie in [0, 1].
    data_dir : path, default=None
        Folder with the canonical files.
    network : {"mlp", "cnn", "resnet18"}, default="cnn"
    n_train, n_test : int
        Examples for training and for scoring; all of the latter are attacked.
    n_kernel : int, default=200
        Training examples, balanced over the classes, on which kernels are measured.
    epsilon : float, default=0.15
        L∞ radius, in units of the data.
    attack : {"pgd", "fgsm", "n-fgsm"}, default="pgd"
        In training. Scores are always taken under PGD.
    train_steps, test_steps : int
        PGD steps in training and in scoring.
    clean_step : bool, default=True
        Adversarial training makes a clean update before each adversarial one, as the paper's code does.
    regimes : tuple of {"benign", "adversarial", "flip"}
        Stage 1. "flip" is the benign network, adversarially trained from ``flip_epoch`` on.
    epochs : int, default=20
        Of stage 1.
    flip_epoch : int, default=None
        None is half of the epochs.
    fractions : tuple of float
        Epochs, besides the whole ones, at which states are kept.
    learning_rate, momentum, batch_size
        Of stochastic gradient descent.
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
        Of stage 2.
    stage2 : tuple of {"benign", "adversarial"}
        Training of stage 2.
    freeze_state : bool, default=True
        Keep batch-norm statistics in stage 2 ("standard"; the others have none to move).
    alpha : float, default=1e-2
        Ridge of closed-form regression on the kernel set.
    n_features : int, default=10
        Eigenfeatures that are scored one by one; see :func:`~ntkrobust_sk.analysis.ntk_features`.
    memory : str or int, default="2GiB"
        Budget for kernels and closed-form regression, as for :func:`~ntkrobust_sk.gram`. Regression with the trace
        kernel of a ResNet-18 needs "8GiB". A run may go on with another one; last digits may then differ.
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
    n_kernel: int = 200
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
    seeds: int = 1
    random_state: int = 0

    def __post_init__(self):
        for name, known in (("regimes", REGIMES), ("dynamics", DYNAMICS), ("stage2", STAGE2)):
            object.__setattr__(self, name, _several(name, getattr(self, name)))
            for value in getattr(self, name):
                check_choice(f"entry of {name}", value, known)
        check_choice("attack", self.attack, ATTACKS)
        check_choice("network", self.network, NETWORKS)
        parse_memory(self.memory)
        self._check_numbers()
        if "flip" in self.regimes and "benign" not in self.regimes:
            raise ValueError("regime 'flip' starts from the benign network: regimes must hold 'benign' too")
        fractions = _several("fractions", self.fractions)
        object.__setattr__(self, "fractions", tuple(number("each of fractions", f, low=0) for f in fractions))
        beyond = [f for f in self.fractions if f > self.epochs]
        if beyond and self.fractions != FRACTIONS:
            raise ValueError(f"fractions must be epochs of stage 1, 0 to {self.epochs}, got {brief(beyond)}")
        if self.flips_at not in self.checkpoints:
            raise ValueError(
                f"flip_epoch must be an epoch that is kept, {brief(self.checkpoints)}, got {self.flip_epoch}"
            )
        if (self.patience is None) != (self.n_validation == 0):
            raise ValueError(
                "patience and n_validation go together: examples held out, and how many epochs their robust "
                f"accuracy may fail to rise; got {self.patience} and {self.n_validation}"
            )
        if self.stage2_from is not None:
            starts = tuple(map(_start, _several("stage2_from", self.stage2_from)))
            object.__setattr__(self, "stage2_from", starts)
        for regime, epoch in self.starts:
            check_choice("regime in stage2_from", regime, self.regimes)
            if epoch not in self.checkpoints:
                raise ValueError(
                    f"stage2_from asks for epoch {epoch:g}, but kept are {brief(self.checkpoints)}. "
                    "Add it to fractions, or raise epochs"
                )

    def _check_numbers(self):
        """Bring what is counted and measured into plain numbers, or raise."""
        checks = {
            ("n_train", "n_test", "n_kernel", "batch_size", "seeds", "test_steps", "train_steps"): integer,
            ("epochs", "stage2_epochs", "n_validation", "n_features"): partial(integer, low=0),
            ("random_state",): partial(integer, low=0, high=LARGEST_SEED),
            ("alpha", "epsilon"): partial(number, low=0),
            ("learning_rate", "stage2_learning_rate"): partial(number, above=0),
            ("momentum",): partial(number, low=0, below=1),
            ("clean_step", "normalize", "freeze_state"): flag,
        }
        optional = {
            ("average_decay",): partial(number, low=0, below=1),
            ("patience",): integer,
            ("flip_epoch",): partial(number, low=0),
        }
        for names, check in (*checks.items(), *optional.items()):
            for name in names:
                value = getattr(self, name)
                if value is not None or names in checks:
                    found = check(name, value)
                    # what is plain stays as it was written
                    object.__setattr__(self, name, value if isinstance(value, int | float) else found)
        for name in ("data", "data_dir"):
            if getattr(self, name) is not None or name == "data":
                check_path(name, getattr(self, name))

    @cached_property
    def checkpoints(self) -> tuple[float, ...]:
        """Epochs at which states are kept and kernels measured."""
        fractions = (f for f in self.fractions if 0 < f < self.epochs)
        return tuple(sorted({*map(float, range(self.epochs + 1)), *fractions}))

    @cached_property
    def flips_at(self) -> float:
        """Epoch at which the "flip" regime turns adversarial."""
        return float(self.epochs // 2 if self.flip_epoch is None else self.flip_epoch)

    @cached_property
    def starts(self) -> tuple[tuple[str, float], ...]:
        """Where stage 2 starts."""
        if self.stage2_from is not None:
            return self.stage2_from
        return tuple((regime, float(self.epochs)) for regime in self.regimes if regime != "flip")

    @cached_property
    def train_attack(self):
        """The attack in training."""
        made = {"pgd": partial(PGD, n_steps=self.train_steps), "fgsm": FGSM, "n-fgsm": NFGSM}
        return made[self.attack](self.epsilon)

    @cached_property
    def test_attack(self) -> PGD:
        """The attack in scoring."""
        return PGD(self.epsilon, n_steps=self.test_steps)

    def run(self, out: str | os.PathLike, *, splits: Splits | None = None, progress: bool = True):
        """Run the experiment, or what is left of it.

        Parameters
        ----------
        out : path
            The run's folder; one that holds the same experiment is gone on with, also with more seeds.
        splits : Splits, default=None
            Data in place of what ``data`` names.
        progress : bool, default=True
            Show a bar.

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
        """
        out = check_path("out", out)
        if splits is not None and not isinstance(splits, Splits):
            raise TypeError(f"splits must be Splits(X, y, X_test, y_test), got {shown(splits)}")
        splits = splits or load_splits(
            self.data, self.data_dir, n_train=self.n_train, n_test=self.n_test, random_state=self.random_state
        )
        experiment = self.fitting(len(splits.y), len(np.unique(splits.y)))
        require_enough(splits.y, experiment.n_kernel)
        with heard(), RunDirectory.session(out, settings_of(experiment, splits)) as run:
            work = _Work(experiment, run, splits)
            work.forget_what_has_lost_its_files()
            tasks = work.tasks()
            label = f"evolution of {self.data}"
            with tqdm(total=len(tasks), desc=label, unit="task", disable=not progress) as bar:
                for name, compute in tasks:
                    bar.set_postfix_str(name)
                    if name not in work.results:
                        work.results[name] = {"task": name, **compute()}
                        run.append(work.results[name])
                    bar.update()
        return load_evolution(out)

    def fitting(self, n_train: int, n_classes: int) -> KernelEvolution:
        """The experiment with no more kernel examples and eigenfeatures than there can be, told of in a warning.

        >>> KernelEvolution(n_kernel=200, n_features=0).fitting(200, 10).n_kernel
        200
        """
        left = n_train - self.n_validation
        if self.n_validation and left < n_classes:
            raise ValueError(
                f"n_validation={self.n_validation:,} leaves {max(left, 0):,} of {n_train:,} training examples "
                f"for {n_classes} classes; ask for fewer"
            )
        n_kernel = no_more("n_kernel", self.n_kernel, left, "training examples")
        n_features = no_more("n_features", self.n_features, n_kernel, "eigenvectors of the kernel")
        return replace(self, n_kernel=n_kernel, n_features=n_features)


# What suits a data set; a file of the user's own takes the defaults.
PRESETS = {
    "digits": {},
    "mnist": {"n_train": 5000, "n_test": 500, "epsilon": 0.1, "test_steps": 20, "epochs": 10},
    "fashion-mnist": {"n_train": 5000, "n_test": 500, "epsilon": 0.05, "test_steps": 20, "epochs": 10},
    "cifar10": {
        "n_train": 5000,
        "n_test": 500,
        "epsilon": 4 / 255,
        "train_steps": 7,
        "test_steps": 20,
        "epochs": 10,
    },
}


def preset(data: str = "digits", **given) -> KernelEvolution:
    """The experiment that suits a data set, with whatever is given (not None) in its place.

    >>> preset("cifar10", epochs=None, seeds=3).epochs
    10
    """
    given = {name: value for name, value in given.items() if value is not None}
    return KernelEvolution(data=str(data), **PRESETS.get(data, {}) | given)


def settings_of(experiment: KernelEvolution, splits: Splits) -> dict:
    """What two runs must agree in to be the same; a run may get more seeds, and its data may have moved."""
    free = ("seeds", "data_dir", "memory")
    settings = {f.name: getattr(experiment, f.name) for f in fields(experiment) if f.name not in free}
    return settings | {"sha256_data": hash_arrays(splits), "version": __version__}


class _Work:
    """An experiment's tasks, in their order: what each computes goes into the results under its name."""

    def __init__(self, experiment: KernelEvolution, run: RunDirectory, splits: Splits):
        self.experiment, self.run, self.splits = experiment, run, splits
        n_kernel = min(experiment.n_kernel, len(splits.y))
        held_out = experiment.n_validation
        chosen = chosen_indices(splits.y, held_out or n_kernel, experiment.random_state)
        self.validation = None
        if held_out:
            kept = np.setdiff1d(np.arange(len(splits.y)), chosen)
            self.validation = splits.X[chosen], splits.y[chosen]
            self.splits = splits = splits._replace(X=splits.X[kept], y=splits.y[kept])
            chosen = chosen_indices(splits.y, min(n_kernel, len(splits.y)), experiment.random_state)
        # by class, so that a kernel shows its blocks
        chosen = chosen[np.argsort(splits.y[chosen], kind="stable")]
        self.X_kernel, self.y_kernel = splits.X[chosen], splits.y[chosen]
        self.n_outputs = int(splits.y.max()) + 1
        self.walks = {}
        # the results by task; those of a stopped run first
        self.results = {result["task"]: result for result in run.results()}

    def forget_what_has_lost_its_files(self) -> None:
        """Drop the results whose files are not there as they were, so that both are made again."""
        lost = {}
        for name, result in self.results.items():
            try:
                self.look_at_files(result)
            except (OSError, ValueError) as error:
                lost[name] = error
        for name, error in lost.items():
            warnings.warn(f"{error}; the task {name} is done again", RuntimeWarning, stacklevel=3)
            result = self.results.pop(name)
            if result["kind"] == "checkpoint":
                for images in IMAGES:
                    shutil.rmtree(
                        self.kernel_store(*map(result.get, ("seed", "regime", "epoch")), images),
                        ignore_errors=True,
                    )
        if lost:
            self.run.forget(lost)

    def look_at_files(self, result) -> None:
        """Raise OSError or ValueError unless the files that a result states are there, as they were written."""
        if result["kind"] == "checkpoint":
            for images, stated in result["kernels"].items():
                read_kernel(self.kernel_store(*map(result.get, ("seed", "regime", "epoch")), images), stated)
        if result["kind"] == "images":
            self.run.arrays("images", f"seed-{result['seed']}", f"{result['regime']}.safetensors")
        for name in adversarial_names(result, self.experiment.starts):
            self.run.arrays(*self.adversarial_file(result["seed"], name))
        state = self.last_state_of(result)
        # one that was deleted to make room is trained again when it is needed
        if state is not None and state.exists():
            self.run.arrays(*state.relative_to(self.run.path).parts)

    def last_state_of(self, result) -> Path | None:
        """The file of the state that a task has measured, if that is its own."""
        if result["kind"] == "checkpoint":
            regime, epoch = result["regime"], result["epoch"]
        elif result["kind"] == "stage 2":
            regime, epoch = f"stage2/{result['task'].partition('/')[2]}", self.experiment.stage2_epochs
        else:
            return None
        return state_file(self.run.path.joinpath(*self.folder(result["seed"], regime)), epoch)

    def kernel_store(self, seed, regime, epoch, images) -> Path:
        return self.run.joined("kernels", kernel_name(seed, regime, epoch, images))

    def tasks(self) -> list:
        """Pairs of a name and a function that returns a dict."""
        experiment, found = self.experiment, []
        for seed in range(experiment.seeds):
            for regime in experiment.regimes:
                for epoch in self.epochs(regime):
                    found.append((f"{seed}/{regime}/{epoch:g}", partial(self.checkpoint, seed, regime, epoch)))
            for regime, epoch in experiment.starts:
                start = f"{seed}/{regime}/{epoch:g}"
                found.append((f"{start}/closed-form", partial(self.closed_form, seed, regime, epoch)))
                for dynamics, training in product(experiment.dynamics, experiment.stage2):
                    compute = partial(self.stage_two, seed, regime, epoch, dynamics, training)
                    found.append((f"{start}/{dynamics}/{training}", compute))
            if experiment.starts:
                found.append((f"{seed}/transfer", partial(self.transfer, seed)))
            for regime in experiment.regimes:
                if experiment.n_features:
                    found.append((f"{seed}/{regime}/features", partial(self.features, seed, regime)))
                found.append((f"{seed}/{regime}/images", partial(self.images, seed, regime)))
        return found

    def epochs(self, regime) -> list[float]:
        """Epochs at which a regime has states of its own."""
        first = self.experiment.flips_at + 1e-9 if regime == "flip" else 0
        return [epoch for epoch in self.experiment.checkpoints if epoch >= first]

    # training

    def key(self, seed, *purpose) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(self.experiment.random_state), seed)
        for part in purpose:
            key = jax.random.fold_in(key, part)
        return key

    def first_model(self, seed) -> Model:
        """The network with the seed's initial weights, the same for all regimes."""
        X, network = self.splits.X, NETWORKS[self.experiment.network]
        model = initial_model(network, X.shape[1:], self.n_outputs, self.key(seed, 0))
        if not self.experiment.normalize:
            return model
        axes = tuple(range(X.ndim - 1))
        mean, std = X.mean(axes, dtype=np.float64), X.std(axes, dtype=np.float64)
        return Model(Normalized(model.network, tuple(mean.tolist()), tuple(std.tolist())), model.variables)

    def stage(self, training, learning_rate, freeze_state=False, average_decay=None) -> Stage:
        experiment = self.experiment
        attacks = (Clean(),)
        if training != "benign":
            attacks = (*attacks, experiment.train_attack) if experiment.clean_step else (experiment.train_attack,)
        common = {"momentum": experiment.momentum, "batch_size": experiment.batch_size}
        return Stage(attacks, learning_rate, **common, freeze_state=freeze_state, average_decay=average_decay)

    def walk(self, seed, regime):
        """The states of a regime in order, trained where they are not on disk."""
        experiment = self.experiment
        stage = self.stage(regime, experiment.learning_rate, average_decay=experiment.average_decay)
        start = stage.first_state(self.first_model(seed), self.key(seed, 1))
        if regime == "flip":
            start = self.state(seed, "benign", experiment.flips_at)
        folder = self.folder(seed, regime)
        of = self.run.place(*folder)
        folder = self.run.path.joinpath(*folder)
        return kept_states(folder, stage, start, self.splits.X, self.splits.y, self.epochs(regime), of=of)

    def folder(self, seed, regime) -> tuple[str, ...]:
        return "checkpoints", f"seed-{seed}", *regime.split("/")

    def state(self, seed, regime, epoch):
        """The state of a regime at an epoch."""
        started = self.walks.pop((seed, regime), iter(()))
        for walk in (started, self.walk(seed, regime)):
            for at, state in walk:
                if at == epoch:
                    self.walks[seed, regime] = walk
                    return state
        raise LookupError(f"epoch {epoch:g} of {regime} is not kept")

    def model(self, seed, regime, epoch) -> Model:
        """What is measured: the network at an epoch, or its average, or the best one if it was stopped."""
        best = self.stopped(seed, regime)
        return averaged(self.state(seed, regime, epoch if best is None else min(epoch, best)))

    def stopped(self, seed, regime) -> float | None:
        """The best epoch of a regime that ended early."""
        results = [self.results.get(f"{seed}/{regime}/{epoch:g}", {}) for epoch in self.epochs(regime)]
        scores = {r["epoch"]: r["validation"] for r in results if "validation" in r and r["epoch"] % 1 == 0}
        if self.validation is None or not scores:
            return None
        best = max(scores, key=scores.get)
        return best if max(scores) - best >= self.experiment.patience else None

    # measuring

    def scores(self, model, seed, rows=NETWORK_ROWS, name=None, restarts=False) -> dict:
        """Clean and robust accuracy, and that under several restarts of the attack."""
        X, y = self.splits.X_test, self.splits.y_test
        X_adv = self.adversarial(model, X, y, seed, rows, name)
        found = {"clean": accuracy(model, X, y, rows), "robust": accuracy(model, X_adv, y, rows)}
        if not restarts:
            return found
        # what fell already stays down
        standing = evaluate(model, X_adv, rows).argmax(1) == y
        if standing.any():
            attack = replace(self.experiment.test_attack, n_restarts=RESTARTS)
            X, y, key = X[standing], y[standing].astype(np.int32), self.key(seed, 4)
            X_adv = attack_in_tiles(attack, model, X, y, key=key, rows=rows)
            standing[standing] = evaluate(model, X_adv, rows).argmax(1) == y
        return found | {"robust_restarts": float(np.mean(standing))}

    def adversarial(self, model, X, y, seed, rows=NETWORK_ROWS, name=None):
        """Attacked examples, kept under ``name`` if there is one."""
        X_adv = attack_in_tiles(
            self.experiment.test_attack, model, X, y.astype(np.int32), key=self.key(seed, 2), rows=rows
        )
        if name is not None:
            self.run.save({"X": X_adv}, *self.adversarial_file(seed, name))
        return X_adv

    def adversarial_file(self, seed, name) -> tuple[str, ...]:
        return "adversarial", f"seed-{seed}", f"{name.replace('/', '-')}.safetensors"

    def checkpoint(self, seed, regime, epoch) -> dict:
        """Accuracies and kernels of a state of stage 1."""
        found = {"kind": "checkpoint", "seed": seed, "regime": regime, "epoch": epoch}
        best = self.stopped(seed, regime)
        if best is not None and epoch > best + self.experiment.patience:
            return found | {"kind": "stopped", "best": best}
        state = self.state(seed, regime, epoch)
        model = averaged(state)
        found |= {"steps": int(state.step), "loss": float(state.loss) if np.isfinite(state.loss) else None}
        found |= {"n_train": len(self.splits.y), "n_test": len(self.splits.y_test), "n_kernel": len(self.y_kernel)}
        found |= self.scores(model, seed)
        if self.validation is not None:
            X, y = self.validation
            found["validation"] = accuracy(model, self.adversarial(model, X, y, seed), y)
        X_adv = self.adversarial(model, self.X_kernel, self.y_kernel, seed)
        found["kernels"] = {}
        for images, X in zip(IMAGES, (self.X_kernel, X_adv), strict=True):
            store = self.kernel_store(seed, regime, epoch, images)
            K = np.asarray(gram("trace", model, X, memory=self.experiment.memory, store=store))
            found["kernels"][images] = hash_arrays([K])
            found |= {f"{images}_{name}": value for name, value in kernel_metrics(K, self.y_kernel).items()}
        return found | class_metrics(
            gram("class", model, self.X_kernel, memory=self.experiment.memory, by_layer=True), self.y_kernel
        )

    def closed_form(self, seed, regime, epoch) -> dict:
        """Kernel regression on the kernel set."""
        model = self.model(seed, regime, epoch)
        predictor = self.regression(model, self.kernel_at(seed, regime, epoch, model))
        found = {"kind": "closed form", "seed": seed, "regime": regime, "epoch": epoch}
        return found | self.scores(predictor, seed, MACHINE_ROWS, f"{regime}/{epoch:g}/closed-form")

    def kernel_at(self, seed, regime, epoch, model):
        """The stored kernel, or that of an earlier state if the regime was stopped there."""
        best = self.stopped(seed, regime)
        epoch = epoch if best is None else min(epoch, best)
        return gram(
            "trace",
            model,
            self.X_kernel,
            memory=self.experiment.memory,
            store=self.kernel_store(seed, regime, epoch, "clean"),
        )

    def regression(self, model, K):
        targets = np.eye(self.n_outputs)[self.y_kernel]
        offset = targets.mean(0)
        dual = solve(K, targets - offset, alpha=self.experiment.alpha)
        return make_predictor(
            resolve_kernel("trace"), model, self.X_kernel, dual, offset, memory=self.experiment.memory
        )

    def stage_two(self, seed, regime, epoch, dynamics, training) -> dict:
        """Training on a kernel, or from it."""
        name = f"{regime}/{epoch:g}/{dynamics}/{training}"
        model = self.second_model(seed, name, self.model(seed, regime, epoch), dynamics, training)
        found = {"kind": "stage 2", "seed": seed, "regime": regime, "epoch": epoch, "dynamics": dynamics}
        return found | {"training": training, **self.scores(model, seed, name=name, restarts=True)}

    def kept_adversarial(self, seed, name) -> np.ndarray | None:
        """Examples made before, or None."""
        try:
            like = {"X": self.splits.X_test}
            return np.asarray(self.run.load(like, *self.adversarial_file(seed, name))["X"])
        except FileNotFoundError:
            return None
        except DamagedCheckpointError as error:
            warnings.warn(f"{error}; the examples are made again", RuntimeWarning, stacklevel=2)
            return None

    def predictors(self, seed):
        """Name, model and rows of a tile of everything that stage 2 has made."""
        for regime, epoch in self.experiment.starts:
            model, name = self.model(seed, regime, epoch), f"{regime}/{epoch:g}"
            yield f"{name}/network", model, NETWORK_ROWS
            predictor = self.regression(model, self.kernel_at(seed, regime, epoch, model))
            yield f"{name}/closed-form", predictor, MACHINE_ROWS
            for dynamics, training in product(self.experiment.dynamics, self.experiment.stage2):
                second = f"{name}/{dynamics}/{training}"
                yield second, self.second_model(seed, second, model, dynamics, training), NETWORK_ROWS

    def second_model(self, seed, name, model, dynamics, training) -> Model:
        """What stage 2 makes of a model, trained where its state is not on disk."""
        experiment = self.experiment
        if dynamics != "standard":
            model = linearize(model, centered=dynamics == "centered")
        stage = self.stage(training, experiment.stage2_learning_rate, freeze_state=experiment.freeze_state)
        start = stage.first_state(model, self.key(seed, 3))
        folder = self.folder(seed, f"stage2/{name}")
        epochs = [float(epoch) for epoch in range(experiment.stage2_epochs + 1)]
        states = kept_states(
            self.run.path.joinpath(*folder),
            stage,
            start,
            self.splits.X,
            self.splits.y,
            epochs,
            keep_all=False,
            of=self.run.place(*folder),
        )
        *_, (_, state) = states
        return state.model

    def transfer(self, seed) -> dict:
        """Accuracy of every model (columns) on the adversarial examples of every model (rows)."""
        X, y = self.splits.X_test, self.splits.y_test
        found = list(self.predictors(seed))
        matrix = []
        for name, model, rows in found:
            X_adv = self.kept_adversarial(seed, name)
            if X_adv is None:
                X_adv = self.adversarial(model, X, y, seed, rows, name)
            matrix.append([accuracy(other, X_adv, y, size) for _, other, size in found])
        names = [name for name, _, _ in found]
        clean = [accuracy(model, X, y, rows) for _, model, rows in found]
        return {"kind": "transfer", "seed": seed, "names": names, "clean": clean, "matrix": matrix}

    def features(self, seed, regime) -> dict:
        """Usefulness and robustness of the kernel's leading eigenfeatures at the end of stage 1."""
        experiment, epoch = self.experiment, self.experiment.checkpoints[-1]
        model = self.model(seed, regime, epoch)
        features = ntk_features(
            "trace",
            model,
            self.X_kernel,
            self.y_kernel,
            self.splits.X_test[: experiment.n_kernel],
            self.splits.y_test[: experiment.n_kernel],
            experiment.test_attack,
            n_features=experiment.n_features,
            key=self.key(seed, 5),
            K=self.kernel_at(seed, regime, epoch, model),
            memory=experiment.memory,
        )
        found = {"kind": "features", "seed": seed, "regime": regime, "epoch": epoch}
        values = ("eigenvalues", "usefulness", "robustness")
        return found | {name: getattr(features, name).tolist() for name in values}

    def images(self, seed, regime) -> dict:
        """What maximises each class's regression direction, and its leading eigenvector."""
        epoch = self.experiment.checkpoints[-1]
        model = self.model(seed, regime, epoch)
        K = np.asarray(gram("class", model, self.X_kernel, memory=self.experiment.memory))
        drawn = {
            name: eigenfeature_images(model, self.X_kernel, coefficients(K, self.y_kernel), n_steps=IMAGE_STEPS)
            for name, coefficients in (
                ("regression", regression_coefficients),
                ("eigenvector", class_eigenvectors),
            )
        }
        images = {name: found.images for name, found in drawn.items()}
        self.run.save(images, "images", f"seed-{seed}", f"{regime}.safetensors")
        found = {"kind": "images", "seed": seed, "regime": regime, "epoch": epoch}
        for name, images in drawn.items():
            found[f"{name}_cosines"] = images.cosines.tolist()
            correlations = class_correlations(images.images, self.splits.X, self.splits.y)
            found[f"{name}_correlation"] = float(np.diag(correlations).mean())
            found[f"{name}_recognised"] = float(np.mean(correlations.argmax(1) == np.arange(self.n_outputs)))
        return found


def adversarial_names(result, starts) -> list[str]:
    """Names under which a task keeps its adversarial examples."""
    if result["kind"] in ("closed form", "stage 2"):
        return [result["task"].partition("/")[2]]
    # the examples of the networks that the others start from
    return [f"{regime}/{epoch:g}/network" for regime, epoch in starts] if result["kind"] == "transfer" else []


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
    """
    run = RunDirectory(check_path("path", path))
    known = {field.name for field in fields(KernelEvolution)}
    settings, results = run.settings, run.results()
    seeds = 1 + max((result["seed"] for result in results), default=0)
    settings = {name: value for name, value in settings.items() if name in known}
    experiment = KernelEvolution(**settings, seeds=seeds)
    if gone := _skipped(experiment, {result["task"] for result in results}):
        warnings.warn(
            f"{run.path / 'results.jsonl'} lacks {len(gone)} results of tasks that come before others which are "
            f"there, the first of them {gone[0]!r}; run the experiment again, and only these are computed",
            RuntimeWarning,
            stacklevel=2,
        )
    return EvolutionResult(run.path, experiment, results)


def _skipped(experiment, there) -> list[str]:
    """Tasks that have no result though a later one has: a run that was stopped has none such."""
    # names of tasks need neither folder nor data
    work = _Work.__new__(_Work)
    work.experiment = experiment
    names = [name for name, _ in work.tasks()]
    last = max((at for at, name in enumerate(names) if name in there), default=0)
    return [name for name in names[:last] if name not in there]


def _several(name, values) -> tuple:
    is_sequence = isinstance(values, Iterable) and not isinstance(values, str | bytes | dict | set)
    if not is_sequence or getattr(values, "shape", None) == ():
        raise ValueError(f"{name} must be a sequence, such as a tuple, got {shown(values)}")
    return tuple(values)


def _start(start) -> tuple[str, float]:
    """A regime and an epoch where stage 2 starts."""
    if not isinstance(start, tuple | list) or len(start) != 2:
        raise ValueError(f"each of stage2_from must be (regime, epoch), got {shown(start)}")
    return start[0], number("epoch in stage2_from", start[1], low=0)
