"""Data whose differences the precision of a network cannot hold, and answers that are no finite numbers."""

import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_digits, load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ntkrobust_sk import (
    MLP,
    PGD,
    AdversarialKernelTrainer,
    EmpiricalNTKClassifier,
    EmpiricalNTKRegressor,
    Model,
    RobustFeatureSelector,
    Stateless,
    TangentFeatures,
    Variables,
    train,
)
from ntkrobust_sk._validation import require_resolution
from ntkrobust_sk.execution.precision import enable_x64

X, Y = load_iris(return_X_y=True)
X, Y = X[::3], Y[::3]
WIDTH = X[:, 3]
NETWORK = MLP(widths=(6,))
ESTIMATORS = [
    AdversarialKernelTrainer(NETWORK, max_epochs=1, random_state=0),
    AdversarialKernelTrainer(NETWORK, max_epochs=1, attack=PGD(0.1, n_steps=1, bounds=None), random_state=0),
    EmpiricalNTKClassifier(NETWORK, random_state=0),
    EmpiricalNTKClassifier(NETWORK, solver="sgd", max_epochs=1, random_state=0),
    EmpiricalNTKRegressor(NETWORK, random_state=0),
    TangentFeatures(NETWORK, random_state=0),
    RobustFeatureSelector(NETWORK, criterion="eigenvalue", n_features=2, random_state=0),
]
R = np.random.default_rng(0)
OUTLIER = R.normal(size=1000)
OUTLIER[0] = 1e12
SOUND = {
    "years": 2020 + R.integers(-5, 6, 1000).astype(float),
    "seconds of a year": 1.7e9 + R.uniform(0, 3.2e7, 1000),
    "whole seconds of a day": 1_700_000_000 + 128 * np.arange(1000),
    "pixels": load_digits().data / 255,
    "one-hot": np.eye(10)[R.integers(0, 10, 1000)],
    "one of a million": np.eye(1, 10**6)[0],
    "constants": np.full((1000, 2), 1e9 + 0.1),
    "constants to rounding": np.where(np.arange(1000) % 2, 0.1 + 0.2, 0.3),
    "one large outlier": OUTLIER,
    "small": 1e-20 * R.normal(size=1000),
    "large": 1e20 * R.normal(size=1000),
    "float32 of any size": (1e9 + R.normal(size=1000)).astype(np.float32),
    "subnormal float32": np.float32(1e-40) * np.arange(9, dtype=np.float32),
    "integers": R.integers(-(10**9), 10**9, 1000),
    "unsigned": R.integers(0, 2**32, 1000, dtype=np.uint32),
    "booleans": R.integers(0, 2, 1000).astype(bool),
    "one row": np.array([[1e9, 1e-60]]),
    "none": np.zeros((0, 3)),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_data_raise_no_alarm(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for targets in (False, True):
            require_resolution("X", SOUND[name], np.float32, targets=targets)


def test_what_half_precision_rounds_of_pixels_and_normal_numbers_is_no_loss():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_resolution("X", R.normal(size=(1000, 3)).astype(np.float32), ml_dtypes.bfloat16)
    with pytest.raises(ValueError, match=r"column 1 of X .* bfloat16"):
        require_resolution("X", np.c_[R.normal(size=100), 2020 + R.normal(size=100)], ml_dtypes.bfloat16)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: f"{type(e).__name__}-{getattr(e, 'solver', '')}")
def test_inputs_that_become_equal_or_zero_are_refused_by_every_fit(estimator):
    for lost, said in ((X + 1e9, "all but equal"), (X * 1e-60, "too small"), (X * 1e-200, "too small")):
        with pytest.raises(ValueError, match=rf"column \d of X holds .*{said} in float32.*StandardScaler"):
            estimator.fit(lost, Y)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
def test_integers_that_become_equal_are_refused_too(dtype):
    with pytest.raises(ValueError, match="y holds 1700000000 to 1700000049, all but equal"):
        require_resolution("y", 1_700_000_000 + np.arange(50, dtype=dtype), np.float32, targets=True)


@pytest.mark.parametrize("solver", ["cholesky", "sgd"])
@pytest.mark.parametrize(
    "targets, said",
    [
        (1.7e9 + np.arange(50.0), "y holds 1700000000.0 to 1700000049.0, all but equal"),
        (1_700_000_000 + np.arange(50), "y holds 1700000000 to 1700000049, all but equal"),
        (WIDTH + 1e8, "all but equal"),
        (WIDTH * 1e-50, "too small"),
        (WIDTH * 1e-36, "too small"),
        (np.c_[WIDTH, WIDTH * 1e-50], "column 1 of y .*too small"),
        (WIDTH * 1e300, r"y holds \S+e\+299, which float32 cannot"),
    ],
)
def test_targets_that_a_network_cannot_hold_are_refused_by_name(targets, said, solver):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=said):
            EmpiricalNTKRegressor(NETWORK, solver=solver, max_epochs=1, random_state=0).fit(X, targets)


@pytest.mark.slow
def test_what_the_errors_say_to_write_works():
    plain = EmpiricalNTKRegressor(NETWORK, random_state=0)
    scaled = TransformedTargetRegressor(plain, transformer=StandardScaler())
    for targets in (WIDTH + 1e8, WIDTH * 1e-50, WIDTH * 1e300):
        # 1e300 is beyond the squares of a scaler
        if targets.max() < 1e200:
            assert scaled.fit(X[:, :3], targets).score(X[:, :3], targets) > 0.9
        with enable_x64(True):
            assert plain.fit(X[:, :3], targets).score(X[:, :3], targets) > 0.85
    for inputs in (X + 1e9, X * 1e-60):
        assert make_pipeline(StandardScaler(), ESTIMATORS[2]).fit(inputs, Y).score(inputs, Y) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("source", [NETWORK, AdversarialKernelTrainer(NETWORK, max_epochs=1, random_state=0)])
def test_considerable_rounding_warns_once_in_each_fit(source):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        EmpiricalNTKClassifier(source, random_state=0).fit(X + 3e5, Y)
    assert len(found) == 1 and "rounding takes" in str(found[0].message) and "column" in str(found[0].message)
    frozen = FrozenEstimator(AdversarialKernelTrainer(NETWORK, max_epochs=1, random_state=0).fit(X, Y))
    with pytest.warns(UserWarning, match="of X .*rounding takes") as found:
        EmpiricalNTKClassifier(frozen).fit(X + 3e5, Y)
    assert len(found) == 1
    with pytest.warns(UserWarning, match="y holds .*rounding takes") as found:
        EmpiricalNTKRegressor(NETWORK, random_state=0).fit(X, WIDTH + 1e6)
    assert len(found) == 1


def test_one_lost_column_is_refused_unless_it_would_not_count_in_double_precision_either():
    moved, vanished = X.copy(), X.copy()
    moved[:, 2] += 1e9
    vanished[:, 1] *= 1e-60
    with pytest.raises(ValueError, match="column 2 of X"):
        require_resolution("X", moved, np.float32)
    with pytest.warns(UserWarning, match="column 1 of X .*takes 1 of"):
        require_resolution("X", vanished, np.float32)
    with pytest.raises(ValueError, match="column 1 of y"):
        require_resolution("y", vanished, np.float32, targets=True)


def linear(weights):
    return Model(Stateless(lambda p, x: x @ p), Variables(jnp.asarray(weights, jnp.float32)))


@pytest.mark.slow
def test_what_is_not_finite_is_no_answer():
    reg = EmpiricalNTKRegressor(NETWORK, alpha=1e-3, random_state=0).fit(X, WIDTH / 2.5 * 3.3e38)
    with pytest.raises(ValueError, match=r"scores of 50 of 50 inputs are (NaN|infinite) in float64"):
        reg.predict(30 * X)
    trainer = AdversarialKernelTrainer(linear(np.ones((4, 2))), max_epochs=0).fit(X, Y > 0)
    trainer.model_ = linear(np.outer(np.ones(4), [1.1e37, -1.1e37]))
    assert np.isfinite(trainer.predict_proba(X)).all()
    with pytest.raises(ValueError, match="infinite in float32"):
        trainer.decision_function(X.astype(np.float32))
    for answer in (trainer.predict, trainer.predict_proba, trainer.decision_function):
        with pytest.raises(ValueError, match="infinite"):
            answer(100 * X)
    features = TangentFeatures(linear(np.ones((4, 1)))).fit(X)
    features.model_ = Model(Stateless(lambda p, x: (x * 1e30) @ p * 1e9), features.model_.variables)
    with pytest.raises(ValueError, match="the features of 50 of 50 inputs are infinite"):
        features.transform(X)
    with pytest.raises(ArithmeticError, match="not finite"):
        trainer.gram(1e30 * X)


@pytest.mark.slow
def test_scores_do_not_depend_on_the_units_of_targets():
    reg = EmpiricalNTKRegressor(NETWORK, random_state=0)
    with enable_x64(True):
        plain = reg.fit(X, WIDTH).score(X, WIDTH)
        for exponent in (-700, 900):
            targets = np.ldexp(WIDTH, exponent)
            np.testing.assert_allclose(reg.fit(X, targets).score(X, targets), plain, rtol=1e-12)


def test_training_names_inputs_and_targets_that_it_cannot_hold():
    for inputs, targets, said in (
        (X, WIDTH * 1e300, r"y holds .*float32 cannot"),
        (X, WIDTH + 1e8, r"y holds .*all but equal"),
        (X + 1e9, WIDTH, r"column \d of X holds .*all but equal"),
        (X + 1e9, Y, r"column \d of X holds .*all but equal"),
    ):
        targets = targets if targets.dtype.kind == "i" else targets[:, None]
        model = linear(np.ones((4, 3 if targets.ndim == 1 else 1)))
        with pytest.raises(ValueError, match=said):
            train(model, inputs, targets, key=jax.random.key(0), optimizer=optax.sgd(0.1))


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1, 3])
def test_training_by_an_estimator_warns_once(index):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        ESTIMATORS[index].fit(X + 3e5, Y)
    assert len([each for each in found if "rounding takes" in str(each.message)]) == 1
    with pytest.warns(UserWarning, match=r"y holds .*rounding takes") as found:
        EmpiricalNTKRegressor(NETWORK, solver="sgd", learning_rate=1e-16, max_epochs=1).fit(X, WIDTH + 1e6)
    assert len(found) == 1
