"""What each task of the experiment computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .experiment import KernelEvolution


import shutil
import warnings
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import jax
import numpy as np

from ..analysis.eigenfeature_images import class_eigenvectors, eigenfeature_images, regression_coefficients
from ..analysis.eigenfeatures import ntk_features
from ..attacks.pgd import Clean
from ..attacks.tiled import attack_in_tiles
from ..datasets.splits import Splits
from ..datasets.subsets import chosen_indices
from ..execution.tiles import MACHINE_ROWS, NETWORK_ROWS, evaluate
from ..kernels.fingerprint import hash_arrays
from ..kernels.gram_matrix import gram
from ..kernels.ntk import resolve_kernel
from ..kernels.predictors import make_predictor
from ..networks.model import Model
from ..networks.named import NETWORKS, initial_model
from ..networks.wrappers import Normalized
from ..solvers.ridge import solve
from ..tangent.linearization import linearize
from ..training.checkpoints import DamagedCheckpointError
from ..training.resumable import Stage, kept_states, state_file
from ..training.state import averaged
from .measurements import accuracy, class_correlations, class_metrics, kernel_metrics
from .results import IMAGES, kernel_name, read_kernel
from .run_directory import RunDirectory, adversarial_names

# Further restarts of the attack that stage 2 is scored with.
RESTARTS = 4
# Of signed-gradient ascent on an image; half of them cross the range of the pixels.
IMAGE_STEPS = 50


class Work:
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
