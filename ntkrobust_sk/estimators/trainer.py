"""Stage 1 as an estimator: a network trained benignly or adversarially."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Self

import jax
import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets

from .._validation import brief, require_regular
from ..execution.tiles import NETWORK_ROWS, movable, network_rows
from ..networks.inputs import params_dtype
from ..networks.model import Model
from ..networks.named import NETWORKS, initial_model, n_logits
from ..networks.precision import with_precision
from ..tangent.linearization import DYNAMICS, linearize
from ..training.schedules import SCHEDULES, is_by_step
from ..training.state import averaged
from .attackable import POSITIVE, GradientDescent, TangentClassifier
from .callbacks import CallbackSupportMixin, EpochCallbacks, with_callbacks
from .descent import BestEpoch, followed, in_final_form, split_off
from .inputs import require_one_kind, require_resolved
from .recipe import Recipe
from .shared import NETWORK, allowed, at_least


@dataclass(eq=False, repr=False, kw_only=True)
class AdversarialKernelTrainer(CallbackSupportMixin, GradientDescent, TangentClassifier):
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
    optimizer : {"sgd", "adam", "adamw"} or optax.GradientTransformation, default="sgd"
        One of optax has a learning rate, a schedule and all else of its own.
    learning_rate : float, default=None
        None is 0.05 for "sgd" and 0.001 for "adam" and "adamw". The paper's ResNet-18 takes 0.1, and 0.01 on a
        frozen kernel.
    momentum : float, default=None
        Of "sgd"; None is 0.9.
    weight_decay : float, default=None
        Share of the parameters that is added to the gradient, by "adamw" to the update. None is 0, and 1e-4 for
        "adamw".
    learning_rate_schedule : {"constant", "cosine", "piecewise"}, Cosine, MultiStep or callable, default="constant"
        How the rate goes on: half a cosine down to zero; a tenth after half of training and again after three
        quarters. A function of the number of the batch, such as a schedule of optax, gives rates themselves. Other
        rates compile nothing.
    loss : AdversarialTraining, TRADES or MART, default=None
        What training lowers; None is :class:`~ntkrobust_sk.AdversarialTraining`. With
        :class:`~ntkrobust_sk.TRADES` and :class:`~ntkrobust_sk.MART`, which look at clean inputs themselves,
        there is no clean step.
    weight_perturbation : AWP, default=None
        Take gradients at the worst weights near by: :class:`~ntkrobust_sk.AWP`.
    augmentation : callable, or tuple of them, default=None
        What is done to each batch of training, ``augmentation(key, batch) -> batch``: :class:`~ntkrobust_sk.Flip`,
        :class:`~ntkrobust_sk.Crop`, or a pure function of JAX.
    ema_decay : float, default=None
        Decay of an exponential moving average of the weights, in [0, 1); the average is ``model_``. Batch-norm
        statistics are those of the last batch.
    early_stopping : bool, default=False
        Keep the network of the epoch that was most accurate under attack on held-out examples, as Rice et al. 2020
        (arXiv:2002.11569) found best against overfitting in adversarial training.
    validation_fraction : float, default=0.1
        Share of the examples that early stopping holds out, by class.
    validation_attack : callable, default=None
        What held-out examples are attacked by; None is ``attack``. It needs ``early_stopping=True``.
    n_iter_no_change : int, default=None
        Stop after so many epochs without a better one; None trains all epochs. Of early
        stopping alone; without it, it has no say.
    warm_start : bool, default=False
        Start from ``model_`` where there is one; network, precision and dynamics must be those it was made by.
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
    validation_scores_ : list of float
        Accuracy under attack on held-out examples after each epoch, with early stopping.
    best_validation_score_ : float
    best_iter_ : int
        The epoch that was kept, counted from 1.

    Raises
    ------
    TrainingDivergedError
        When loss or update become non-finite; ``model_`` is then the last finite model.

    Notes
    -----
    scikit-learn's callbacks are told of each epoch: ``trainer.set_callbacks(ProgressBar())``, with scikit-learn
    1.9.

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
    learning_rate: float | None = field(default=None, metadata=allowed(*POSITIVE["constraints"], None))
    momentum: float | None = field(default=None, metadata=allowed(Interval(Real, 0, 1, closed="left"), None))
    optimizer: Any = "sgd"
    weight_decay: float | None = field(default=None, metadata=allowed(at_least(0, Real), None))
    learning_rate_schedule: Any = field(
        default="constant", metadata=allowed(named=SCHEDULES, such_as="Cosine() or MultiStep()")
    )
    loss: Any = field(default=None, metadata=allowed(such_as="a loss, such as TRADES(beta=6.0)"))
    weight_perturbation: Any = field(default=None, metadata=allowed(such_as="AWP(gamma=0.005)"))
    augmentation: Any = field(default=None, metadata=allowed(such_as="an augmentation, such as Crop(4)"))
    ema_decay: float | None = None
    early_stopping: bool = field(default=False, metadata=allowed("boolean"))
    validation_fraction: float = field(default=0.1, metadata=allowed(Interval(Real, 0, 1, closed="neither")))
    validation_attack: Any = field(default=None, metadata=allowed(such_as="an attack, such as PGD(epsilon=8/255)"))
    n_iter_no_change: int | None = field(default=None, metadata=allowed(at_least(1), None))
    warm_start: bool = field(default=False, metadata=allowed("boolean"))

    @with_callbacks
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
        recipe, given = self._recipe(), y
        before = dict(vars(self)) if self.warm_start and hasattr(self, "model_") else None
        X, encoded, sample_weight = self._validated_labels(X, y, sample_weight)
        key_init, key_train = jax.random.split(self._key())
        model = self._model_before(before, X, key_init) if before else self._first_model(X, key_init)
        X, encoded = self._in_final_form(model, X, encoded)
        self.loss_curve_, self.n_iter_ = [], 0
        callbacks = EpochCallbacks(self, self.max_epochs, X, np.asarray(given))
        self._descend(recipe, model, X, encoded, sample_weight, key_train, callbacks)
        callbacks.finish()
        return self

    def partial_fit(
        self, X: Any, y: Any, classes: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Train for one epoch on inputs and labels, from where the last call, or :meth:`fit`, has left.

        The optimiser's state goes on too, but it is neither saved nor pickled: after loading, it starts anew.

        Parameters
        ----------
        X : array (n, n_features) or (n, h, w, c)
        y : array (n,) of labels among ``classes``
        classes : array (C,), default=None
            All labels that there will be; needed at the first call.
        sample_weight : array (n,), default=None

        Returns
        -------
        self

        Raises
        ------
        ValueError
            Without classes at the first call, for labels that are not among them, and for settings that need the
            whole of training: early_stopping, class_weight="balanced", and schedules that end.
        """
        recipe, first = self._recipe(), not hasattr(self, "model_")
        self._require_endless(recipe)
        if first and classes is None:
            raise ValueError("partial_fit needs classes at its first call: all labels that there will be")
        X, encoded, sample_weight = self._validated_part(X, y, classes, sample_weight, first)
        key_init, key_train = jax.random.split(self._key())
        model = self._first_model(X, key_init) if first else self.model_
        if first:
            self.loss_curve_, self.n_iter_ = [], 0
        X, encoded = self._in_final_form(model, X, encoded)
        state = vars(self).get("_training") or recipe.first_state(model, key_train)
        states = recipe.states(self, state, X, encoded, sample_weight, 1)
        (self._training,) = followed(self, "model_", states, state, 1)
        return self

    def _recipe(self) -> Recipe:
        self._validate_params()
        return Recipe.of(self)

    def _first_model(self, X, key) -> Model:
        """Return the model that training starts from: drawn, in its precision, linearised if it is to be."""
        n_classes = len(self.classes_)
        model = initial_model(self.network, self.input_shape_, n_classes, key, X.dtype)
        model = with_precision(model, self.precision)
        n_outputs = n_logits(model, self.input_shape_, X.dtype)
        if n_outputs != n_classes:
            raise ValueError(
                f"the network has {n_outputs} outputs, but y has {n_classes} classes; leave n_outputs out, or "
                f"give n_outputs={n_classes}"
            )
        return model if self.dynamics == "standard" else linearize(model, centered=self.dynamics == "centered")

    def _model_before(self, before, X, key) -> Model:
        """Return the model of the fit before, if it was one of the same classes and inputs, and network."""
        for name, found in (("classes_", self.classes_), ("input_shape_", self.input_shape_)):
            if not np.array_equal(before[name], found):
                vars(self).update({"classes_": before["classes_"], "input_shape_": before["input_shape_"]})
                kept, new = (brief(np.asarray(values).tolist()) for values in (before[name], found))
                raise ValueError(
                    f"warm_start=True goes on with a network of {name}={kept}, but this fit has {new}; set "
                    "warm_start=False to start afresh"
                )
        asked, kept = self._first_model(X, key).network, before["model_"].network
        if asked != kept:
            raise ValueError(
                f"warm_start=True goes on with the network of the fit before, {kept!r}, but network, precision "
                f"and dynamics now ask for {asked!r}; set them as they were, or warm_start=False to start afresh"
            )
        return before["model_"]

    def _in_final_form(self, model, X, y):
        require_resolved(X, model)
        if self.attack is not None:
            X = movable(model, X, params_dtype(model.variables.params), NETWORK_ROWS)
        return in_final_form(model, X, y)

    def _descend(self, recipe, model, X, y, sample_weight, key, callbacks):
        """Train for all epochs, or until a callback or the validation score says stop."""
        for name in ("validation_scores_", "best_validation_score_", "best_iter_", "_training"):
            vars(self).pop(name, None)
        best = None
        if self.early_stopping:
            key, key_split, key_score = jax.random.split(key, 3)
            left, (held_X, held_y, held_weight) = split_off(
                self.validation_fraction, X, y, sample_weight, key_split
            )
            X, y, sample_weight = left
            attack = self.validation_attack or self.attack
            best = BestEpoch(attack, held_X, held_y, held_weight, key_score)
        state = recipe.first_state(model, key)
        states = recipe.states(self, state, X, y, sample_weight, self.max_epochs)
        with closing(followed(self, "model_", states, state, self.max_epochs)) as epochs:
            callbacks.begin(self.n_iter_)
            for state in epochs:
                if best is not None:
                    best.look_at(state)
                patience = self.n_iter_no_change or self.max_epochs
                stops = callbacks.end(lambda state=state: {"model_": averaged(state)})
                if stops or (best is not None and best.since() >= patience):
                    break
                callbacks.begin(self.n_iter_)
        self._training = state
        if best is not None and best.best is not None:
            self.validation_scores_, self.best_iter_ = best.scores, len(best.scores) - best.since()
            self.best_validation_score_ = max(best.scores)
            self._training, self.model_ = best.best, averaged(best.best)

    def _require_endless(self, recipe):
        """Raise ValueError for settings that partial_fit, which sees a part of training, cannot take."""
        without = (
            (self.early_stopping, "early_stopping=True", "keep the best model yourself"),
            (self.class_weight == "balanced", "class_weight='balanced'", "give a dict, or sample_weight"),
            (
                recipe.schedule is not None and not is_by_step(recipe.schedule),
                f"learning_rate_schedule={brief(self.learning_rate_schedule)}",
                "give 'constant', or a function of the number of the batch",
            ),
        )
        for found, said, way in without:
            if found:
                raise ValueError(f"partial_fit does not know when training ends, so it cannot take {said}; {way}")

    def _validated_part(self, X, y, classes, sample_weight, first):
        """Return a part of the data as :meth:`_validated_labels` does; set ``classes_`` at the first call."""
        X, y = self._validated(X, y, reset=first)
        require_one_kind(y)
        check_classification_targets(y)
        known = self.classes_ if classes is None else _labels("classes", classes)
        if not first and not np.array_equal(known, self.classes_):
            raise ValueError(
                f"classes must stay those of the first call, {brief(self.classes_.tolist())}, got "
                f"{brief(known.tolist())}; leave classes out, or start with a new estimator"
            )
        if len(known) < 2:
            raise ValueError(f"classes must hold at least 2 labels, got {brief(known.tolist())}")
        if len(strange := np.setdiff1d(y, known)):
            raise ValueError(
                f"y holds labels that are not among classes: {brief(strange.tolist())} are none of "
                f"{brief(known.tolist())}, and the first call of partial_fit has to name all"
            )
        self.classes_ = known
        return X, np.searchsorted(known, y).astype(np.int32), self._weights(sample_weight, X, y)

    def __getstate__(self):
        # the optimiser's state is a matter of this process
        return {name: value for name, value in super().__getstate__().items() if name != "_training"}

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


def _labels(name, labels) -> np.ndarray:
    """Return the different ones among some labels (C,), sorted."""
    require_regular(name, labels)
    found = np.asarray(labels)
    if found.ndim != 1:
        raise ValueError(f"{name} must be an array (C,) of labels, got {brief(labels)}")
    require_one_kind(found)
    check_classification_targets(found)
    return np.unique(found)
