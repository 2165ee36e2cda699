"""What each part of a run depends on: only the settings, and the examples, that have a say in its bits.

Two runs in which these are the same have the same part, whatever else differs. A setting that is not named here is
taken for one that everything depends on.
"""

from __future__ import annotations

import json
import secrets
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from ..kernels.fingerprint import hash_arrays
from .result_lines import digest
from .results import IMAGES
from .setting_checks import n_matrix
from .states import Examples, own_epochs
from .tasks import Measurements, Task, tasks_of

if TYPE_CHECKING:
    from .experiment import KernelEvolution

# Settings that parts name themselves, and those that only say which parts there are. Data count by their content.
NAMED = (
    *("network", "normalize", "precision", "random_state", "learning_rate", "momentum", "batch_size"),
    *(
        "optimizer",
        "average_decay",
        "attack",
        "epsilon",
        "norm",
        "train_steps",
        "test_steps",
        "clean_step",
        "flip_epoch",
    ),
    *("patience", "stage2_epochs", "stage2_learning_rate", "freeze_state", "alpha", "n_features", "n_kernel"),
)
SELECTING = (
    *("regimes", "epochs", "fractions", "stage2_from", "dynamics", "stage2"),
    *("data", "image_size", "n_train", "n_test", "n_validation", "sha256_data"),
)


class Part(NamedTuple):
    """A part of a run: its kind, such as "kernels", and what of this kind it is."""

    kind: str
    what: tuple


class Contents(NamedTuple):
    """Hashes of an experiment's examples by their purpose; what is not known is like nothing else."""

    training: str
    test: str
    kernel: str
    validation: str | None

    @classmethod
    def of(cls, examples: Examples, training_known: bool = True, test_known: bool = True) -> Contents:
        """Hash examples, as far as they are known to be the experiment's."""
        known = {"training": training_known, "test": test_known, "kernel": training_known}
        hashes = {
            name: hash_arrays(getattr(examples, name)) if is_known else unknown()
            for name, is_known in known.items()
        }
        held_out = examples.validation
        return cls(**hashes, validation=None if held_out is None else hash_arrays(held_out))


def unknown() -> str:
    """Return what stands for something that is not known: it equals nothing."""
    return f"unknown {secrets.token_hex(16)}"


class Dependencies:
    """The parts of a run, each with a digest of all that it depends on.

    Parameters
    ----------
    experiment : KernelEvolution
    settings : dict
        As the folder states them.
    contents : Contents
    memory : str or int
    """

    def __init__(self, experiment: KernelEvolution, settings: dict[str, Any], contents: Contents, memory: Any):
        self.experiment, self.contents, self.memory = experiment, contents, memory
        # as they come back from a folder
        self.settings = json.loads(json.dumps(settings))

    def parts(self) -> dict[Part, str]:
        """Return the digests of all parts."""
        experiment, found = self.experiment, {}
        for seed, regime in product(range(experiment.seeds), experiment.regimes):
            for epoch in own_epochs(experiment, regime):
                at = seed, regime, epoch
                found[Part("states of training", at)] = self._state(*at)
                found |= {Part("kernels", (*at, images)): self._kernel(*at, images) for images in IMAGES}
        for task in tasks_of(experiment):
            if task.measure is Measurements.stage_two:
                found[Part("models of stage 2", (task.name,))] = self._model_of_stage_two(**task.on)
            found[Part("results", (task.name,))] = self._result(task)
        return {part: digest(json.dumps(known)) for part, known in found.items()}

    def _named(self, *names) -> list:
        return [self.settings.get(name) for name in names]

    def _base(self) -> list:
        rest = {name: held for name, held in self.settings.items() if name not in (*NAMED, *SELECTING)}
        network = self._named("network", "normalize", "precision", "random_state")
        return [network, self.contents.training, rest]

    def _training(self, training, learning_rate) -> list:
        common = self._named("optimizer", learning_rate, "momentum", "batch_size")
        if training == "benign":
            return common
        attack = self._named("attack", "clean_step")
        is_named = isinstance(self.settings["attack"], str)
        return [*common, attack, self._named("epsilon", "norm", "train_steps") if is_named else None]

    def _state(self, seed, regime, epoch) -> list:
        flips_at = self.experiment.flips_at
        if regime == "flip" and epoch <= flips_at:
            regime = "benign"
        start = self._state(seed, "benign", flips_at) if regime == "flip" else None
        how = self._training(regime, "learning_rate")
        return [self._base(), seed, regime, epoch, how, self._named("average_decay"), start]

    def _scored(self) -> list:
        """List what a score depends on besides the model."""
        return [self.contents.test, self._attack_in_scoring()]

    def _attack_in_scoring(self) -> list:
        return self._named("epsilon", "norm", "test_steps")

    def _history(self, regime) -> list | None:
        """Return what says how long a regime is trained, and which of its networks is measured."""
        if self.experiment.patience is None:
            return None
        validation = self.contents.validation, self._attack_in_scoring()
        return [
            self.experiment.patience,
            own_epochs(self.experiment, regime),
            self.experiment.flips_at,
            validation,
        ]

    def _measured(self, seed, regime, epoch) -> list:
        return [self._state(seed, regime, epoch), self._history(regime)]

    def _kernel(self, seed, regime, epoch, images) -> list:
        attack = self._attack_in_scoring() if images == "adversarial" else None
        examples = self.contents.kernel
        return [self._measured(seed, regime, epoch), examples, attack, self.memory]

    def _model_of_stage_two(self, seed, regime, epoch, dynamics, training) -> list:
        how = self._training(training, "stage2_learning_rate"), self._named("stage2_epochs", "freeze_state")
        return [self._measured(seed, regime, epoch), dynamics, training, how]

    def _result(self, task: Task) -> list:
        on, measure = task.on, task.measure
        if measure is Measurements.transfer:
            return [measure.__name__, self._compared(on["seed"])]
        if measure is Measurements.stage_two:
            return [measure.__name__, self._model_of_stage_two(**on), self._scored()]
        seen = IMAGES if measure is Measurements.checkpoint else IMAGES[:1]
        kernels = [self._kernel(**on, images=images) for images in seen]
        more = {
            Measurements.checkpoint: [self._scored(), self._named("n_kernel")[0] == "all"],
            Measurements.closed_form: [self._scored(), self._named("alpha")],
            Measurements.features: [self._scored(), self._named("n_features"), n_matrix(self.experiment.n_kernel)],
            Measurements.images: [],
        }
        return [measure.__name__, kernels, more[measure]]

    def _compared(self, seed) -> list:
        """Return what the models depend on that a transfer compares."""
        compared = []
        for task in tasks_of(self.experiment):
            if task.on["seed"] == seed and task.measure in (Measurements.closed_form, Measurements.stage_two):
                compared.append([task.name, self._result(task)])
        return compared
