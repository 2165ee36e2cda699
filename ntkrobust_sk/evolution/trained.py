"""The networks that a run has trained, read from its folder."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from .._validation import check_choice, integer, number
from ..datasets.splits import Splits
from ..kernels.fingerprint import hash_arrays
from ..networks.model import Model
from ..training.state import averaged
from .experiment import load_evolution, load_experiment
from .imported import resolved
from .own_objects import state_network
from .results import brief_epochs
from .run_directory import RunDirectory, RunMismatchError, differences
from .running import splits_of
from .states import States
from .tasks import Measurements, predictor_name


def load_trained(
    out: str | os.PathLike,
    regime: str,
    epoch: float | None = None,
    *,
    seed: int = 0,
    dynamics: str | None = None,
    training: str | None = None,
    splits: Splits | None = None,
    **objects: Any,
) -> Model:
    """Read a network that a run has trained: one of stage 1, or what stage 2 has made of it. Nothing is trained.

    Parameters
    ----------
    out : path
        The run's folder.
    regime : {"benign", "adversarial", "flip"}
    epoch : float, default=None
        Of stage 1; None is the last. A regime that ended early gives its best network from there on, and an
        experiment that averages parameters gives the average, as they were measured.
    seed : int, default=0
    dynamics : {"standard", "linearized", "centered"}, default=None
        Of stage 2, which started from that network; None is stage 1.
    training : {"benign", "adversarial"}, default=None
        Of stage 2, to be given with ``dynamics``.
    splits : Splits, default=None
        The data, where the run was begun with data that were given in Python.
    **objects : network, attack, optimizer
        As for :func:`load_experiment`. The network must be the one that was trained; under another version of JAX
        than that of the run its code is taken on trust. Attack and optimiser play no part here.

    Returns
    -------
    Model
        Callable: X (n, *input_shape), in units of the data, to logits (n, C).

    Raises
    ------
    FileNotFoundError
        If there is no run, or the data that it names are gone: its networks normalise by them.
    LookupError
        If the run has not trained that network, or its file was deleted.
    DamagedCheckpointError
        If the file is not what was written.
    RunMismatchError
        If the data or the network are not those of the run.
    ValueError, TypeError
        For arguments that the experiment does not know.

    Examples
    --------
    >>> import tempfile
    >>> from ntkrobust_sk import KernelEvolution
    >>> sizes = {"n_train": 20, "n_test": 10, "n_kernel": 10, "network": "mlp", "n_features": 0}
    >>> few = KernelEvolution(**sizes, regimes=("benign",), epochs=1, fractions=(), stage2_from=())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = few.run(folder, progress=False)
    ...     load_trained(folder, "benign")(np.zeros((3, 8, 8, 1))).shape
    (3, 10)
    """
    experiment, result = load_experiment(out, **objects), load_evolution(out)
    check_choice("regime", regime, experiment.regimes)
    for name, value, known in (
        ("dynamics", dynamics, experiment.dynamics),
        ("training", training, experiment.stage2),
    ):
        if value is not None:
            check_choice(name, value, known)
    seed = integer("seed", seed, low=0)
    if (dynamics is None) != (training is None):
        raise ValueError(f"dynamics and training go together, got {dynamics!r} and {training!r}")
    run, splits = RunDirectory(result.path), splits_of(experiment, splits)
    stated, given = run.settings.get("sha256_data"), hash_arrays(splits)
    if stated != given:
        raise RunMismatchError(
            f"the data are not those of {run.path}. sha256_data: {str(stated)[:12]} there, {given[:12]} here"
        )
    _require_network_of(run, experiment, splits)
    experiment = experiment.fitting(len(splits.y), len(np.unique(splits.y)))
    epoch = experiment.checkpoints[-1] if epoch is None else number("epoch", epoch, low=0)
    regime = result.kept_as(regime, epoch)
    states = States(experiment, run, splits)
    at = Measurements(states, result.results).measured_epoch(seed, regime, epoch)
    try:
        model = averaged(states.read(seed, regime, at))
        if dynamics is None or training is None:
            return model
        name = predictor_name(regime, epoch, dynamics, training)
        return states.read_after_stage_two(seed, name, model, dynamics, training)
    except FileNotFoundError as error:
        epochs = brief_epochs(result.epochs(seed, regime)) or "no epoch"
        raise LookupError(
            f"{run.path} does not hold that network, there is no file {error.filename}. It has {epochs} of "
            f"{regime!r} with seed {seed}; stage 2 starts from {experiment.starts}, its dynamics are "
            f"{experiment.dynamics}, its trainings {experiment.stage2}. Run the experiment again to make what is "
            "missing"
        ) from error


def _require_network_of(run, experiment, splits):
    """Raise unless a network is the one that a run states, by its code where that can be compared."""
    of_data = splits.X.shape[1:], int(splits.y.max()) + 1
    there: Any = run.settings.get("network")
    here: Any = json.loads(json.dumps(state_network(resolved(experiment.network), *of_data)))
    if isinstance(there, dict) and isinstance(here, dict) and there.get("jax") != here.get("jax"):
        # another version of JAX writes the same code down in another way
        there, here = (
            {name: part for name, part in of.items() if name not in ("computes", "jax")} for of in (there, here)
        )
    if found := differences(there, here, "network"):
        raise RunMismatchError(
            f"the network is not that of {run.path}. {'; '.join(found)}. Give the network that was trained, or "
            "none where the folder holds it"
        )
