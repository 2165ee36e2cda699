"""Each step that has got gradients, on breast cancers: they are the differences, and lead further than search."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.datasets import load_breast_cancer
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PowerTransformer,
    QuantileTransformer,
    SplineTransformer,
    StandardScaler,
)
from sklearn.svm import SVC

from ntkrobust_sk import APGD, PGD, Square, as_model, robust_accuracy
from ntkrobust_sk.robustness.target import attackable
from ntkrobust_sk.targets.target import enable_x64

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:attacks leave these columns")]
X, Y = load_breast_cancer(return_X_y=True, as_frame=True)
# in standard deviations; and a column of three sizes, for the encoders
X = X[["mean texture", "mean smoothness", "worst area", "worst concavity"]]
X = ((X - X.mean()) / X.std()).assign(size=KBinsDiscretizer(3, encode="ordinal").fit_transform(X[["worst area"]]))
NUMBERS = list(X.columns[:4])
ROWS, LABELS = X[::8], Y[::8]
LINEAR = LogisticRegression(C=0.5)


def before(step, last=LINEAR):
    """A pipeline on the numbers alone."""
    return make_pipeline(make_column_transformer((step, NUMBERS)), last)


def encoded(encoder):
    return make_pipeline(make_column_transformer((StandardScaler(), NUMBERS), (encoder, ["size"])), LINEAR)


STEPS = {
    "OneHotEncoder": encoded(OneHotEncoder()),
    "OrdinalEncoder": encoded(OrdinalEncoder()),
    "SimpleImputer": before(SimpleImputer()),
    "QuantileTransformer": before(QuantileTransformer(n_quantiles=30, output_distribution="normal")),
    "PowerTransformer": before(PowerTransformer()),
    "SplineTransformer": before(SplineTransformer(5, extrapolation="linear")),
    "FunctionTransformer": before(FunctionTransformer(jnp.tanh, validate=True)),
    "CalibratedClassifierCV": before(StandardScaler(), CalibratedClassifierCV(SVC(), cv=2)),
    "VotingClassifier": before(
        StandardScaler(), VotingClassifier([("a", LINEAR), ("b", GaussianNB())], voting="soft")
    ),
    "StackingClassifier": before(StandardScaler(), StackingClassifier([("a", LINEAR), ("b", SVC())], cv=2)),
    "BaggingClassifier": before(StandardScaler(), BaggingClassifier(LINEAR, n_estimators=3, random_state=0)),
    "OneVsRestClassifier": before(StandardScaler(), OneVsRestClassifier(LINEAR)),
    "QuadraticDiscriminantAnalysis": before(StandardScaler(), QuadraticDiscriminantAnalysis()),
    "GaussianNB": before(StandardScaler(), GaussianNB()),
    "NearestCentroid": before(StandardScaler(), NearestCentroid()),
}


def differ_from_central_differences(target, columns):
    """The largest difference of slopes, over their largest, of a mixture of scores, at points between the data."""
    rng = np.random.default_rng(0)
    points = target.X[:6].copy()
    points[:, columns] += rng.uniform(-0.05, 0.05, (6, len(columns)))
    with enable_x64(True):
        mixture = jnp.asarray(rng.normal(size=target.model(jnp.asarray(points[:1])).shape[1]))
        total = jax.jit(lambda x: target.model(x) @ mixture)
        slopes = np.asarray(jax.jit(jax.grad(lambda x: total(x).sum()))(jnp.asarray(points)))[:, columns]
        found = np.zeros_like(slopes)
        for place, column in enumerate(columns):
            step = np.zeros(points.shape[1])
            step[column] = 1e-6
            found[:, place] = (np.asarray(total(points + step)) - np.asarray(total(points - step))) / 2e-6
    return np.abs(slopes - found).max() / np.abs(found).max()


@pytest.mark.parametrize("name", STEPS)
def test_gradients_are_central_differences_and_find_no_less_than_a_search(name):
    model = STEPS[name].fit(X, Y)
    target = attackable(model, ROWS, LABELS)
    assert target.no_gradient_because is None
    assert differ_from_central_differences(target, [0, 1, 2, 3]) < 1e-4
    white = robust_accuracy(model, ROWS, LABELS, PGD(0.4, 20, n_restarts=2, bounds=None))
    black = robust_accuracy(model, ROWS, LABELS, Square(0.4, 200, bounds=None))
    assert white <= black and white < model.score(ROWS, LABELS)


def test_gradients_of_a_transformed_target_are_central_differences():
    model = TransformedTargetRegressor(make_pipeline(StandardScaler(), Ridge()), func=np.log, inverse_func=np.exp)
    areas = load_breast_cancer(as_frame=True).data["mean area"]
    target = attackable(model.fit(X[NUMBERS], areas), ROWS[NUMBERS], areas[ROWS.index])
    assert differ_from_central_differences(target, [0, 1, 2, 3]) < 1e-4


RAW, DIAGNOSES = load_breast_cancer(return_X_y=True)
UNIT = MinMaxScaler().fit_transform(RAW[:, :6])
FLAT = {
    "isotonic": (CalibratedClassifierCV(LogisticRegression(C=100), cv=2, method="isotonic"), UNIT, 0.2),
    "quantiles": (make_pipeline(QuantileTransformer(n_quantiles=50), LogisticRegression()), RAW[:, :6], 0.5),
    "normal quantiles": (
        make_pipeline(QuantileTransformer(n_quantiles=50, output_distribution="normal"), LogisticRegression()),
        RAW[:, :6],
        0.5,
    ),
    "splines": (make_pipeline(SplineTransformer(), LogisticRegression(C=10)), UNIT, 0.1),
    "periodic splines": (
        make_pipeline(SplineTransformer(extrapolation="periodic"), LogisticRegression(C=10)),
        UNIT,
        0.1,
    ),
    "soft voting": (
        VotingClassifier([("a", LogisticRegression(C=10)), ("b", GaussianNB())], voting="soft"),
        UNIT,
        0.1,
    ),
    "clipped": (make_pipeline(MinMaxScaler(clip=True), LogisticRegression(C=10)), RAW[:, :6], 0.5),
}


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("name", FLAT)
def test_gradients_lead_off_flat_pieces_as_far_as_a_search(name, random_start):
    model, X, epsilon = FLAT[name]
    model.fit(X[100:], DIAGNOSES[100:])
    attacked = model, X[:60], DIAGNOSES[:60]
    # of a wave's several tops one run climbs one
    n_restarts = 3 if random_start and name == "periodic splines" else 1
    attack = PGD(epsilon, 20, random_start=random_start, n_restarts=n_restarts, bounds=None)
    white = robust_accuracy(*attacked, attack)
    assert white <= robust_accuracy(*attacked, Square(epsilon, 100, bounds=None)) + 0.02


@pytest.mark.parametrize("name", ["quantiles", "normal quantiles", "splines", "clipped"])
def test_beyond_the_range_values_are_exact_and_gradients_are_not_zero(name):
    model, X, _ = FLAT[name]
    model.fit(X, DIAGNOSES)
    beyond = X[:5] + np.where(np.arange(6) % 2, 1, -1) * 3 * np.ptp(X, axis=0)
    with enable_x64(True):
        scores = as_model(model)
        margins = np.diff(scores(beyond), axis=1)[:, 0]
        np.testing.assert_allclose(margins, model.decision_function(beyond), rtol=1e-9)
        assert (jax.grad(lambda x: scores(x)[:, 1].sum())(jnp.asarray(beyond)) != 0).all()


def steps(x):
    return jnp.floor(4 * x)


def test_an_attack_whose_gradients_are_zero_says_so_and_none_is_said_of_a_search():
    model = make_pipeline(FunctionTransformer(steps), LogisticRegression()).fit(UNIT, DIAGNOSES)
    with pytest.warns(UserWarning, match=r"exactly zero at \d+ of \d+ .*\(100%\).*with Square or AutoAttack"):
        robust_accuracy(model, UNIT[:60], DIAGNOSES[:60], PGD(0.05, 3, random_start=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        robust_accuracy(model, UNIT[:60], DIAGNOSES[:60], Square(0.05, 3))


def test_no_flat_gradients_are_told_of_a_model_that_is_very_sure():
    sure = make_pipeline(StandardScaler(), LogisticRegression(C=1e9, tol=1e-9, max_iter=2000)).fit(UNIT, DIAGNOSES)
    sure[-1].coef_ *= 1e4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert robust_accuracy(sure, UNIT[:60], DIAGNOSES[:60], PGD(1e-3, 3)) > 0.5


@pytest.mark.parametrize("extrapolation", ["constant", "periodic"])
def test_in_a_ball_that_is_wider_than_some_columns_starts_and_steps_are_what_find(extrapolation):
    """One start of PGD falls behind a search there; several of APGD, which shortens its steps, do not."""
    raw = load_breast_cancer(as_frame=True)["data"].iloc[:, :6]
    model = make_pipeline(SplineTransformer(extrapolation=extrapolation), LogisticRegression(max_iter=2000))
    attacked = model.fit(raw[60:], Y[60:]), raw[:60], Y[:60]
    by_gradients = robust_accuracy(*attacked, APGD(0.5, 50, n_restarts=5, bounds=None))
    assert by_gradients <= robust_accuracy(*attacked, Square(0.5, 100, bounds=None)) + 0.02
