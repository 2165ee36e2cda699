"""Stage 1 as an estimator: a network trained benignly or adversarially."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import StrOptions
from tqdm.auto import tqdm

from .._validation import fitting
from ..attacks.pgd import Clean
from ..attacks.threat_model import admitted
from ..execution.tiles import NETWORK_ROWS, movable, network_rows
from ..networks.inputs import host_inputs, params_dtype
from ..networks.model import Model
from ..networks.named import NETWORKS, initial_model, n_logits
from ..networks.precision import with_precision
from ..tangent.linearization import DYNAMICS, linearize
from ..training.loop import train
from ..training.optimizers import sgd
from ..training.state import TrainingDivergedError, initial_state, with_hyperparameters
from .attackable import POSITIVE, GradientDescent, TangentClassifier
from .inputs import require_resolved
from .shared import NETWORK, allowed


@dataclass(eq=False, repr=False, kw_only=True)
class AdversarialKernelTrainer(GradientDescent, TangentClassifier):
    """A neural network trained benignly or adversarially: stage 1, where the kernel is learned.

    Parameters
    ----------
    network : {"mlp", "cnn", "resnet18"}, Network or Model, default=None
        What to train. None is "cnn" for images and "mlp" otherwise; a network without ``n_outputs`` gets the
        number of classes; a Model is where training starts from.
    input_shape : tuple of int, default=None
        Shape (h, w, c) of the images that rows of X hold, flattened in this order. None takes it from X.
    attack : callable, default=None
        Attack in training, such as ``PGD(4 / 255)``. None is benign training.
    clean_step : bool, default=True
        Before each adversarial update make a clean one on the same batch, as the paper's code does. False is
        the adversarial training of Madry et al. 2018 (arXiv:1706.06083).
    dynamics : {"standard", "linearized", "centered"}, default="standard"
        Train the network, or its linearisation around where it starts, with or without the logits there.
    max_epochs : int, default=20
    batch_size : int, default=128
    learning_rate : float, default=0.05
        The paper's ResNet-18 takes 0.1, and 0.01 on a frozen kernel.
    momentum : float, default=0.9
    class_weight : dict, "balanced" or None, default=None
    random_state : int, RandomState or None, default=None
        Seed of initial weights, data order and attack noise.
    precision : {"bf16", "tf32"}, default=None
        Of the network's products, in training, attacks, predictions and kernels: see
        :class:`~ntkrobust_sk.MixedPrecision`. None leaves the network as it is.
    verbose : int, default=0
        1 shows a progress bar over epochs.

    Attributes
    ----------
    classes_ : array (C,)
    model_ : Model
        The trained network; ``model_(x)`` are its logits.
    loss_curve_ : list of float
        Loss of the last update of each epoch.
    input_shape_ : tuple of int
    n_features_in_ : int
    n_iter_ : int
        Epochs trained.

    Raises
    ------
    TrainingDivergedError
        When loss or update become non-finite; ``model_`` is then the last finite model.

    Notes
    -----
    A sample weight of k trains like k copies of the sample where the data fit in one batch: exactly in x64, and to
    float32 rounding otherwise (scikit-learn's ``check_sample_weight_equivalence_on_dense_data`` asks for 1e-7,
    which a float32 sum in another order does not give; it is the one estimator check that does not hold).

    References
    ----------
    Loo et al. 2022, *Evolution of Neural Tangent Kernels under Benign and Adversarial Training*,
    arXiv:2210.12030.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from ntkrobust_sk import PGD, AdversarialKernelTrainer
    >>> X, y = load_iris(return_X_y=True)
    >>> attack = PGD(epsilon=0.3, n_steps=5, bounds=None)
    >>> trainer = AdversarialKernelTrainer(attack=attack, random_state=0).fit(X, y)
    >>> trainer.gram(X[:10]).shape
    (10, 10)
    """

    network: Any = field(default=None, kw_only=False, metadata=allowed(named=NETWORKS, such_as=NETWORK))
    dynamics: str = field(default="standard", metadata=allowed(StrOptions(set(DYNAMICS))))
    learning_rate: float = field(default=0.05, metadata=POSITIVE)

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Train on inputs and labels.

        Parameters
        ----------
        X : array (n, n_features) or (n, h, w, c)
        y : array (n,) of labels of any type
        sample_weight : array (n,), default=None

        Returns
        -------
        self
        """
        self._validate_params()
        X, encoded, sample_weight = self._validated_labels(X, y, sample_weight)
        key_init, key_train = jax.random.split(self._key())
        n_classes = len(self.classes_)
        model = initial_model(self.network, self.input_shape_, n_classes, key_init, X.dtype)
        model = with_precision(model, self.precision)
        n_outputs = n_logits(model, self.input_shape_, X.dtype)
        if n_outputs != n_classes:
            raise ValueError(
                f"the network has {n_outputs} outputs, but y has {n_classes} classes; leave n_outputs out, or "
                f"give n_outputs={n_classes}"
            )
        require_resolved(X, model)
        if self.attack is not None:
            X = movable(model, X, params_dtype(model.variables.params), NETWORK_ROWS)
        if self.dynamics != "standard":
            model = linearize(model, centered=self.dynamics == "centered")
        fit_by_sgd(self, "model_", model, X, encoded, sample_weight, key_train)
        return self

    def gram(
        self, X: Any, Y: Any = None, *, kernel: str | Callable = "trace", memory: str | int = "2GiB"
    ) -> np.ndarray:
        """Return the empirical NTK of the trained network.

        Parameters
        ----------
        X : array (n, n_features) or (n, h, w, c)
        Y : array (m, n_features) or (m, h, w, c), default=None
            Columns' inputs; None means X.
        kernel : {"trace", "class", "full", "pseudo"} or callable, default="trace"
        memory : str or int, default="2GiB"

        Returns
        -------
        NumPy array (n, m), (n, m, C) or (n, m, C, C)
        """
        return self._gram(kernel, X, Y, memory)

    def _scores(self):
        return self.model_

    @property
    def _rows(self) -> int:
        return network_rows()


def fit_by_sgd(
    self: Any, name: str, model: Model, X: np.ndarray, y: np.ndarray, sample_weight: Any, key: Any
) -> None:
    """Train a model by an estimator's parameters; set its attributes ``name``, ``loss_curve_`` and ``n_iter_``."""
    if self.attack is not None:
        admitted(self.attack, X)
    attacks = (Clean(),) if self.attack is None else (Clean(), self.attack)
    attacks = attacks if self.clean_step or self.attack is None else (self.attack,)
    state = with_hyperparameters(
        initial_state(model, key, sgd()), learning_rate=self.learning_rate, momentum=self.momentum
    )
    # in their final form, since what is lost on the way to it has been said by the estimator
    params = model.variables.params
    X, y = host_inputs("X", X, params), y if y.dtype.kind in "iu" else fitting("y", y, params_dtype(params))
    states = train(
        state,
        X,
        y,
        optimizer=sgd(),
        attacks=attacks,
        epochs=self.max_epochs,
        batch_size=self.batch_size,
        sample_weight=sample_weight,
    )
    self.loss_curve_, self.n_iter_ = [], 0
    description = f"{type(self).__name__} ({'benign' if self.attack is None else type(self.attack).__name__})"
    bar = tqdm(states, description, self.max_epochs, disable=not self.verbose, unit="epoch", leave=False)
    try:
        for state in bar:
            self.loss_curve_.append(float(state.loss))
            self.n_iter_ += 1
            bar.set_postfix(loss=f"{self.loss_curve_[-1]:.4f}", refresh=False)
    except TrainingDivergedError as error:
        setattr(self, name, error.state.model)
        raise
    setattr(self, name, state.model)
