"""Fields of attacks, networks, kernels and solvers are parameters of the estimators that hold them."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, ShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ntkrobust_sk import (
    CNN,
    FGSM,
    MLP,
    PGD,
    AdversarialKernelTrainer,
    Box,
    Cholesky,
    ConjugateGradient,
    EmpiricalNTKClassifier,
    EmpiricalNTKClassifierCV,
    EmpiricalNTKRegressor,
    EmpiricalNTKRegressorCV,
    MixedPrecision,
    Model,
    ProjectedNTK,
    RobustFeatureSelector,
    TangentFeatures,
)
from ntkrobust_sk.networks.flax_adapters import FlaxNetwork

X, Y = load_iris(return_X_y=True)
X, Y = X[::3], Y[::3]
ATTACK = PGD(0.1, n_steps=2, bounds=None)
ONE_SPLIT = ShuffleSplit(1, test_size=0.5, random_state=0)
ALL = [
    AdversarialKernelTrainer,
    EmpiricalNTKClassifier,
    EmpiricalNTKClassifierCV,
    EmpiricalNTKRegressor,
    EmpiricalNTKRegressorCV,
    RobustFeatureSelector,
    TangentFeatures,
]


@pytest.mark.parametrize("kind", ALL)
def test_every_estimator_has_the_fields_of_what_it_holds_as_parameters(kind):
    held = {"AdversarialKernelTrainer": "network"}.get(kind.__name__, "estimator")
    network = MLP(widths=(4,))
    estimator = kind(network)
    assert estimator.get_params()[f"{held}__widths"] == (4,)
    assert f"{held}__widths" not in estimator.get_params(deep=False)
    assert estimator.set_params(**{f"{held}__widths": (5, 6)}) is estimator
    assert getattr(estimator, held) == MLP(widths=(5, 6)) and network == MLP(widths=(4,))
    assert getattr(clone(estimator), held) == MLP(widths=(5, 6))
    assert kind._get_param_names() == sorted(estimator.get_params(deep=False))
    if "attack" in kind._get_param_names():
        assert estimator.set_params(attack=ATTACK, attack__epsilon=0.3).attack == PGD(0.3, n_steps=2, bounds=None)


def test_objects_are_set_before_their_fields_in_whatever_order_they_are_named():
    trainer = AdversarialKernelTrainer(attack=FGSM(0.1))
    trainer.set_params(attack__n_steps=7, attack=ATTACK)
    assert trainer.attack == PGD(0.1, n_steps=7, bounds=None)
    trainer.set_params(attack__bounds__high=3.0, attack__epsilon=0.2, attack__bounds=Box(0.0, 1.0))
    assert trainer.attack == PGD(0.2, n_steps=7, bounds=Box(0.0, 3.0))
    assert PGD(0.1, n_steps=2, bounds=None) == ATTACK


def test_wrapped_networks_and_modules_of_flax_have_their_fields_too():
    trainer = AdversarialKernelTrainer(MixedPrecision(CNN()))
    trainer.set_params(network__precision="tf32", network__network__activation="gelu")
    assert trainer.network == MixedPrecision(CNN(activation="gelu"), "tf32")
    flax = AdversarialKernelTrainer(FlaxNetwork(nn.Dense(3)))
    assert flax.set_params(network__module__features=5).network == FlaxNetwork(nn.Dense(5))


def test_a_name_has_the_parameters_of_what_it_stands_for_and_stays_until_one_is_changed():
    machine = EmpiricalNTKClassifier("mlp", solver="cg")
    assert machine.get_params()["estimator__widths"] == MLP().widths
    machine.set_params(**machine.get_params())
    assert machine.solver == "cg" and machine.estimator == "mlp"
    machine.set_params(solver__tol=1e-3, estimator__widths=(8,))
    assert machine.solver == ConjugateGradient(tol=1e-3) and machine.estimator == MLP(widths=(8,))
    assert EmpiricalNTKClassifier().set_params(solver__max_residual=0.1).solver == Cholesky(max_residual=0.1)


def test_a_kernel_has_its_fields_as_parameters():
    machine = EmpiricalNTKClassifier(kernel=ProjectedNTK(100, 0))
    assert machine.set_params(kernel__n_components=50).kernel == ProjectedNTK(50, 0)


def test_a_search_goes_over_attacks_and_networks_through_pipelines():
    pipeline = make_pipeline(StandardScaler(), EmpiricalNTKClassifier(AdversarialKernelTrainer(max_epochs=1)))
    prefix = "empiricalntkclassifier__estimator__"
    grid = {"attack": [ATTACK], "attack__epsilon": [0.2], "network": ["mlp"], "network__widths": [(3,), (4,)]}
    pipeline.set_params(**{f"{prefix}random_state": 0})
    search = GridSearchCV(pipeline, {prefix + name: values for name, values in grid.items()}, cv=ONE_SPLIT)
    trained = search.fit(X, Y).best_estimator_[-1].estimator_
    assert trained.attack == PGD(0.2, n_steps=2, bounds=None) and ATTACK.epsilon == 0.1
    assert trained.network in (MLP(widths=(3,)), MLP(widths=(4,)))
    assert trained.model_.network.widths == search.best_params_[f"{prefix}network__widths"]
    search.set_params(**{f"estimator__{prefix}attack": FGSM(0.5)})
    search.set_params(**{f"estimator__{prefix}attack__epsilon": 0.7})
    assert search.estimator[-1].estimator.attack == FGSM(0.7)


@pytest.mark.slow
def test_a_search_over_epsilon_is_one_over_attacks():
    selector = RobustFeatureSelector(attack=ATTACK, n_candidates=6, n_features=2, random_state=0)
    pipeline = make_pipeline(selector, LogisticRegression())
    by_name = {"robustfeatureselector__attack__epsilon": [0.1, 1.0]}
    by_attack = {"robustfeatureselector__attack": [ATTACK, PGD(1.0, n_steps=2, bounds=None)]}
    scores = [
        GridSearchCV(pipeline, grid, cv=ONE_SPLIT, refit=False).fit(X, Y).cv_results_["mean_test_score"]
        for grid in (by_name, by_attack)
    ]
    np.testing.assert_array_equal(*scores)


def test_a_randomised_search_draws_radii():
    trainer = AdversarialKernelTrainer("mlp", attack=ATTACK, max_epochs=1, random_state=0)
    radii = {"attack__epsilon": np.linspace(0.1, 0.5, 9)}
    search = RandomizedSearchCV(trainer, radii, n_iter=2, cv=ONE_SPLIT, random_state=0).fit(X, Y)
    assert search.best_estimator_.attack.epsilon == search.best_params_["attack__epsilon"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attack__epsilo": 1}, r"Invalid parameter 'epsilo' for attack PGD.*\['epsilon', 'n_steps'"),
        ({"attack__": 1}, "Invalid parameter '' for attack"),
        ({"attack__epsilon__x": 1}, "Invalid parameter 'x' for attack__epsilon 0.1, which has no parameters"),
        ({"attack__bounds__low": 1}, "Invalid parameter 'low' for attack__bounds None.*in the same call"),
        ({"attack__epsilon": -1}, "attack__epsilon=-1: epsilon must be a finite number >= 0"),
        ({"attack__epsilon": float("nan")}, "attack__epsilon=nan: epsilon must"),
        (
            {"attack": None, "attack__epsilon": 1},
            r"'attack__epsilon'.*attack is None.*such as PGD\(epsilon=8/255\)",
        ),
        ({"attack": PGD, "attack__epsilon": 1}, "attack is <class .*PGD.*such as PGD"),
        ({"network__widths": (3,)}, r"network is None.*such as MLP\(widths=\(64,\)\)"),
        ({"network": "mlp", "network__width": 3}, r"'width' for network MLP.*\['n_outputs', 'widths'"),
        ({"network": "mpl", "network__widths": 3}, "network is 'mpl', which has no parameters"),
        ({"max_epochs__x": 1}, "max_epochs is 20, which has no parameters of its own$"),
        ({"netwrk__widths": (3,)}, "Invalid parameter 'netwrk' for estimator.*Valid parameters are"),
        ({"attack__n_steps": 0}, "attack__n_steps=0: n_steps must"),
    ],
)
def test_what_cannot_be_set_is_named(given, message):
    trainer = AdversarialKernelTrainer(attack=ATTACK)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        trainer.set_params(**given)
    assert PGD(0.1, n_steps=2, bounds=None) == ATTACK


def test_a_model_is_no_configuration_since_its_weights_have_one_shape():
    network = MLP(n_outputs=3, widths=(4,))
    model = Model(network, network.init(jax.random.key(0), (4,)))
    trainer = AdversarialKernelTrainer(model)
    assert not [name for name in trainer.get_params() if name.startswith("network__")]
    with pytest.raises(ValueError, match=r"network is Model.*which has no parameters of its own"):
        trainer.set_params(network__network__widths=(3,))


@dataclass(frozen=True)
class Own:
    """An attack of a user's own, which asks for more than its fields' types."""

    epsilon: float
    norm: str = "linf"
    bounds: tuple | None = None

    def __post_init__(self):
        if self.epsilon > 1:
            raise RuntimeError("too far")

    def __call__(self, model, x, y, *, key):
        return x


def test_an_attack_of_ones_own_has_parameters_and_its_own_errors():
    trainer = AdversarialKernelTrainer(attack=Own(0.1))
    assert trainer.set_params(attack__epsilon=0.2).attack == Own(0.2)
    with pytest.raises(RuntimeError, match="too far"):
        trainer.set_params(attack__epsilon=2)
    assert trainer.attack == Own(0.2)


def test_what_is_shown_names_whole_objects_only():
    machine = EmpiricalNTKClassifier(AdversarialKernelTrainer("mlp", attack=ATTACK)).set_params(
        estimator__attack__epsilon=0.25, estimator__network__widths=(5,)
    )
    shown = "".join(repr(machine).split())
    assert "attack=PGD(epsilon=0.25,n_steps=2" in shown and "widths=(5,)" in shown
    for text in (shown, machine._repr_html_()):
        assert "attack__" not in text and "network__" not in text
