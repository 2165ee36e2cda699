"""How the settings of an experiment are checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

from .._validation import LARGEST_SEED, brief, check_choice, check_path, flag, integer, number
from ..attacks.entry import require_attack
from ..attacks.norms import NORMS
from ..attacks.pgd import FGSM, NFGSM, PGD
from ..execution.memory import parse_memory
from ..networks.model import Model, Network, advice, require_network
from ..networks.named import NETWORKS
from ..networks.precision import PRECISIONS
from ..tangent.linearization import DYNAMICS
from ..training.optimizers import OPTIMIZERS, resolve_optimizer
from .imported import check_form, is_named_by_module
from .own_objects import Stated
from .results import brief_epochs

if TYPE_CHECKING:
    from .experiment import KernelEvolution

REGIMES = ("benign", "adversarial", "flip")
STAGE2 = ("benign", "adversarial")
ATTACKS = ("pgd", "fgsm", "n-fgsm")
# Epochs between whole ones, where the kernel moves fastest; the paper's.
FRACTIONS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.5, 2.5)
# Radius where neither the settings nor the attack state one.
EPSILON = 0.15
# Settings of an optimiser that is given by its name.
RATES = ("learning_rate", "momentum", "stage2_learning_rate")
# Learning rate of stage 2 under gradient descent; with other optimisers it is their own.
STAGE2_RATE = 0.01

# How settings of an experiment, and of the demo, are checked.
CHECKS = {
    integer: "n_train n_test batch_size seeds test_steps train_steps patience",
    partial(integer, low=0): "epochs max_epochs stage2_epochs n_validation n_features",
    partial(integer, low=0, high=LARGEST_SEED): "random_state",
    partial(number, low=0): "alpha epsilon flip_epoch",
    partial(number, above=0): "learning_rate stage2_learning_rate",
    partial(number, low=0, below=1): "momentum average_decay",
    flag: "clean_step normalize freeze_state",
}


def check_settings(experiment: KernelEvolution) -> None:
    """Bring the settings of an experiment into plain values that fit each other, or raise."""
    for name, known in (("regimes", REGIMES), ("dynamics", DYNAMICS), ("stage2", STAGE2)):
        object.__setattr__(experiment, name, several(name, getattr(experiment, name)))
        for value in getattr(experiment, name):
            check_choice(f"entry of {name}", value, known)
    if not experiment.regimes:
        raise ValueError(
            f"regimes must name a training of stage 1 or more, {', '.join(map(repr, REGIMES))}, got (): without "
            "one nothing is measured. For kernels at initialisation alone give regimes=('benign',), epochs=0"
        )
    if experiment.precision is not None:
        check_choice("precision", experiment.precision, PRECISIONS, "None")
    parse_memory(experiment.memory)
    object.__setattr__(experiment, "n_kernel", count_or_all("n_kernel", experiment.n_kernel))
    check_network(experiment.network)
    check_attack(experiment)
    choose_rates(experiment)
    check_numbers(experiment)
    named_attack(experiment)
    check_path("data", experiment.data)
    if isinstance(experiment.image_size, list):
        object.__setattr__(experiment, "image_size", tuple(experiment.image_size))
    if experiment.data_dir is not None:
        check_path("data_dir", experiment.data_dir)
    _check_epochs(experiment)
    if (experiment.patience is None) != (experiment.n_validation == 0):
        raise ValueError(
            "patience and n_validation go together: examples held out, and how many epochs their robust "
            f"accuracy may fail to rise; got {experiment.patience} and {experiment.n_validation}"
        )
    _check_starts(experiment)


def check_network(network: Any) -> None:
    """Raise unless this is the name of a network, a network that can be hashed, or a Model."""
    if isinstance(network, str):
        if is_named_by_module(network):
            check_form(network)
        else:
            check_choice("network", network, NETWORKS, "module:name, a network such as MLP(), or a Model")
        return
    if isinstance(network, Model):
        network = require_network(network.network, "network.network")
    elif isinstance(network, type) or not isinstance(network, Network):
        raise TypeError(
            f"network must be {', '.join(map(repr, NETWORKS))}, an object with init and apply such as MLP() or "
            f"from_flax(module), or a Model, got {brief(network)}{advice(network)}"
        )
    _require_hashable("network", require_network(network))


def check_attack(experiment: KernelEvolution) -> None:
    """Let the attack say what ball is meant where the settings do not, or raise where they contradict it."""
    attack, stated = experiment.attack, None
    if isinstance(attack, str):
        check_choice("attack", attack, ATTACKS, "an attack such as PGD(8 / 255)")
    else:
        _require_hashable("attack", require_attack(attack))
        stated = getattr(attack, "norm", None)
    if experiment.norm is None:
        object.__setattr__(experiment, "norm", "linf" if stated is None else stated)
    check_choice("norm", experiment.norm, NORMS)
    if stated not in (None, experiment.norm):
        raise ValueError(
            f"norm={experiment.norm!r}, but attack={brief(attack)} is of norm {stated!r}; give the same norm to "
            "both, or leave norm out"
        )
    if experiment.epsilon is None:
        object.__setattr__(experiment, "epsilon", getattr(attack, "epsilon", EPSILON))


def named_attack(experiment: Any) -> PGD | FGSM | NFGSM | None:
    """Make the attack in training that the settings name; None where they hold one, or it cannot be of the norm.

    Raises
    ------
    ValueError
        If it is of another norm.
    """
    epsilon, norm = experiment.epsilon, experiment.norm
    if experiment.attack == "n-fgsm":
        if norm != NFGSM.norm:
            raise ValueError(f"attack='n-fgsm' is of norm {NFGSM.norm!r} alone, got norm={norm!r}; take 'pgd'")
        return NFGSM(epsilon)
    made = {"pgd": partial(PGD, n_steps=experiment.train_steps), "fgsm": FGSM}
    return made[experiment.attack](epsilon, norm=norm) if isinstance(experiment.attack, str) else None


def choose_rates(experiment: KernelEvolution) -> None:
    """Let the optimiser say what hyperparameters it has where the settings do not, or raise where it has none."""
    given = {name: value for name in RATES if (value := getattr(experiment, name)) is not None}
    optimizer = "sgd" if experiment.optimizer is None else experiment.optimizer
    stage2 = given.pop("stage2_learning_rate", None) if isinstance(optimizer, str) else None
    if isinstance(optimizer, Stated):
        return
    try:
        _, values = resolve_optimizer(optimizer, **given)
    except ValueError as error:
        if not given or (isinstance(optimizer, str) and optimizer not in OPTIMIZERS):
            raise
        raise ValueError(
            f"{error}. Where replace(experiment, optimizer=...) changes an experiment, give momentum=None, "
            "learning_rate=None and stage2_learning_rate=None, too"
        ) from None
    _require_hashable("optimizer", optimizer)
    if stage2 is None and values:
        stage2 = STAGE2_RATE if optimizer == "sgd" else values["learning_rate"]
    chosen = values.get("learning_rate"), values.get("momentum"), stage2
    for name, value in (("optimizer", optimizer), *zip(RATES, chosen, strict=True)):
        object.__setattr__(experiment, name, value)


def _require_hashable(name, value):
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"{name} must be hashable, so that code compiled for it is found again, got {brief(value)} ({error}); "
            "a frozen dataclass of plain values is"
        ) from error


def _check_epochs(experiment):
    if "flip" in experiment.regimes and "benign" not in experiment.regimes:
        raise ValueError("regime 'flip' starts from the benign network: regimes must hold 'benign' too")
    fractions = several("fractions", experiment.fractions)
    object.__setattr__(experiment, "fractions", tuple(number("each of fractions", f, low=0) for f in fractions))
    beyond = [f for f in experiment.fractions if f > experiment.epochs]
    if beyond and experiment.fractions != FRACTIONS:
        raise ValueError(
            f"fractions must be epochs of stage 1, 0 to {experiment.epochs}, got {brief_epochs(beyond)}"
        )
    if experiment.flips_at not in experiment.checkpoints:
        kept = brief_epochs(experiment.checkpoints)
        raise ValueError(f"flip_epoch must be an epoch that is kept, {kept}, got {experiment.flip_epoch}")
    if "flip" in experiment.regimes and 0 < experiment.epochs <= experiment.flips_at:
        raise ValueError(
            f"flip_epoch={experiment.flip_epoch} is the last epoch, so regime 'flip' would never turn; "
            "give an earlier one, or leave 'flip' out of regimes"
        )


def _check_starts(experiment):
    if experiment.stage2_from is not None:
        starts = tuple(map(start_of_stage_two, several("stage2_from", experiment.stage2_from)))
        object.__setattr__(experiment, "stage2_from", starts)
    for regime, epoch in experiment.starts:
        check_choice("regime in stage2_from", regime, experiment.regimes)
        if epoch not in experiment.checkpoints:
            raise ValueError(
                f"stage2_from asks for epoch {epoch:g}, but kept are {brief_epochs(experiment.checkpoints)}. Add "
                "it to fractions, or raise epochs"
            )
        if regime == "flip" and epoch <= experiment.flips_at:
            raise ValueError(
                f"stage2_from asks for ('flip', {epoch:g}), but 'flip' is the benign network until it turns "
                f"adversarial at epoch {experiment.flips_at:g}; write ('benign', {epoch:g}), or a later epoch"
            )


def check_numbers(settings: Any) -> None:
    """Bring what is counted and measured in a dataclass of settings into plain numbers, or raise."""
    for check, names in CHECKS.items():
        for field in fields(settings):
            value = getattr(settings, field.name)
            if field.name in names.split() and not (value is None and field.default is None):
                found = check(field.name, value)
                # what is plain stays as it was written
                object.__setattr__(settings, field.name, value if isinstance(value, int | float) else found)


def count_or_all(name: str, value: Any) -> int | str:
    """Return a count, or "all", or raise.

    >>> count_or_all("n_kernel", "some")
    Traceback (most recent call last):
    ValueError: n_kernel must be a positive integer or 'all', got 'some'
    """
    if isinstance(value, str):
        if value != "all":
            raise ValueError(f"{name} must be a positive integer or 'all', got {brief(value)}")
        return value
    return integer(name, value)


def n_matrix(n_kernel: int | str) -> int:
    """Return how many examples kernels have that are matrices, which "all" are too many for.

    >>> n_matrix("all"), n_matrix(50)
    (200, 50)
    """
    return 200 if isinstance(n_kernel, str) else n_kernel


def several(name: str, values: Any) -> tuple:
    """Return values as a tuple, or raise: text and sets are no sequences of settings."""
    is_sequence = isinstance(values, Iterable) and not isinstance(values, str | bytes | dict | set)
    if not is_sequence or getattr(values, "shape", None) == ():
        raise ValueError(f"{name} must be a sequence, such as a tuple, got {brief(values)}")
    return tuple(values)


def start_of_stage_two(start: Any) -> tuple[str, float]:
    """Return a regime and an epoch where stage 2 starts, or raise."""
    if not isinstance(start, tuple | list) or len(start) != 2:
        raise ValueError(f"each of stage2_from must be (regime, epoch), got {brief(start)}")
    return start[0], number("epoch in stage2_from", start[1], low=0)
