"""Randomised smoothing: the guarantee against classifiers whose smoothed answers are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.stats import binom, norm
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.tree import DecisionTreeClassifier

from ntkrobust_sk import PGD, as_model, certified_accuracy, certify, robust_accuracy

X, Y = load_iris(return_X_y=True)
LABELS = np.array(["a", "b", "c"])[Y]
SIGMA = 0.5


def half_space(x):
    """The answer is 1 where 3 x_1 + 4 x_2 > 5, so that the distance to the boundary is |3 x_1 + 4 x_2 − 5| / 5."""
    value = x @ jnp.array([3.0, 4.0]) - 5
    return jnp.stack([jnp.zeros_like(value), value], axis=1)


DIMENSIONS = ("NHWC", "HWIO", "NHWC")
MODEL = Partial(half_space)
# the boundary is at 1/2
STUMP = DecisionTreeClassifier(max_depth=1).fit([[0.0], [1.0]], ["left", "right"])


def at(distances):
    """Points at signed distances from the boundary of the half space."""
    return (np.array([0.6, 0.8]) * (1 + np.asarray(distances))[:, None]).astype(np.float32)


# The guarantee


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [True, False])
def test_a_radius_is_too_large_as_rarely_as_alpha_says(compiled):
    distances = np.random.default_rng(0).uniform(0.05, 1.2, size=600)
    subject, rows = (MODEL, at(distances)) if compiled else (STUMP, 0.5 + distances[:, None])
    found = certify(subject, rows, sigma=SIGMA, n_samples=500, alpha=0.1)
    too_large = np.sum(found.radii > distances)
    assert too_large <= binom.ppf(0.999, len(distances), 0.1)
    # and the bound is not so loose that nothing was tested
    assert too_large >= 10
    np.testing.assert_array_equal(found.p_lower > norm.cdf(distances / SIGMA), found.radii > distances)


def test_with_many_draws_radii_approach_the_distance_to_the_boundary():
    distances = np.array([0.2, -0.4, 0.8])
    few, many = (certify(MODEL, at(distances), sigma=SIGMA, n_samples=n, alpha=0.01).radii for n in (500, 100_000))
    np.testing.assert_allclose(many, np.abs(distances), rtol=0.03)
    assert np.abs(many - np.abs(distances)).max() < np.abs(few - np.abs(distances)).max()
    # never more than all draws of one kind can show
    assert certify(MODEL, at([9.0]), sigma=SIGMA, n_samples=500, alpha=0.01).radii == pytest.approx(
        SIGMA * norm.ppf(0.01 ** (1 / 500))
    )


def test_it_abstains_where_the_answer_is_a_coin_s():
    found = certify(MODEL, at([0.0, 1e-4, 0.5, -0.5]), sigma=SIGMA, n_samples=1000)
    assert found.abstains.tolist() == [True, True, False, False]
    assert found.radii[:2].tolist() == [0, 0] and found.labels[2:].tolist() == [1, 0]


def test_what_knows_predict_alone_is_certified_too():
    rows = np.array([[0.1], [0.8], [0.5]])
    found = certify(STUMP, rows, sigma=SIGMA, n_samples=5000)
    assert found.labels[:2].tolist() == ["left", "right"] and found.abstains.tolist() == [False, False, True]
    np.testing.assert_allclose(found.radii[:2], [0.4, 0.3], rtol=0.15)
    silent = clone(STUMP).fit([[0.0], [1.0]], ["left", "right"])
    silent.predict_proba = None
    np.testing.assert_array_equal(certify(silent, rows, sigma=SIGMA, n_samples=5000).radii, found.radii)


# Estimators, shares, seeds


@pytest.fixture(scope="module")
def linear():
    return LogisticRegression(max_iter=200).fit(X, LABELS)


@pytest.mark.slow
def test_certified_accuracy_is_the_share_that_is_right_and_certain(linear):
    radii = np.array([0, 0.3, 0.6])
    found = certify(linear, X, sigma=0.4, n_samples=300)
    right = (found.labels == LABELS) & ~found.abstains
    expected = [np.mean(right & (found.radii >= radius)) for radius in radii]
    shares = certified_accuracy(linear, X, LABELS, radii, sigma=0.4, n_samples=300)
    np.testing.assert_allclose(shares, expected)
    assert certified_accuracy(linear, X, LABELS, 0.3, sigma=0.4, n_samples=300) == expected[1]
    # what is certain against every attack is so against this one, on the (nearly linear) classifier itself
    assert expected[1] <= robust_accuracy(linear, X, LABELS, PGD(0.3, norm="l2", bounds=None)) + 0.02
    wrong = np.roll(LABELS, 50)
    assert certified_accuracy(linear, X, wrong, 0.0, sigma=0.4, n_samples=300) < 0.1


@pytest.mark.slow
def test_a_row_s_certificate_depends_on_the_seed_and_its_place_alone(linear):
    few, all_of_them = (
        certify(linear, X[:3], sigma=1.0, n_samples=50),
        certify(linear, X[:9], sigma=1.0, n_samples=50),
    )
    np.testing.assert_array_equal(few.p_lower, all_of_them.p_lower[:3])
    other = certify(linear, X[:9], sigma=1.0, n_samples=50, random_state=1)
    assert (other.p_lower != all_of_them.p_lower).any()
    np.testing.assert_array_equal(all_of_them.labels, linear.classes_[as_model(linear)(X[:9]).argmax(1)])


def test_convolutions_count_the_same_draws_batch_after_batch(monkeypatch):
    def brightness(x):
        kernel = jnp.ones((6, 6, 1, 1), x.dtype)
        total = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=DIMENSIONS)
        return jnp.concatenate([total.reshape(-1, 1) - 18, jnp.zeros((len(x), 1), x.dtype)], axis=1)

    images = np.random.default_rng(0).uniform(0.1, 1, size=(3, 6, 6, 1)).astype(np.float32)
    in_turn = certify(brightness, images, sigma=1.0, n_samples=700)
    monkeypatch.setattr("ntkrobust_sk.execution.loops.prefers_compiled_loop", lambda *_: True)
    np.testing.assert_array_equal(certify(brightness, images, sigma=1.0, n_samples=700).p_lower, in_turn.p_lower)
    exact = norm.cdf((images.sum((1, 2, 3)) - 18) / 6)
    np.testing.assert_allclose(in_turn.p_lower, exact, atol=0.1)


# Bad input


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"sigma": 0}, ValueError, "sigma must be a finite number > 0"),
        ({"sigma": "0.1"}, ValueError, "sigma must be a finite number"),
        ({"n_samples": 0}, ValueError, "n_samples must be a positive integer"),
        ({"n_selection": 1.5}, ValueError, "n_selection must be a positive integer"),
        ({"alpha": 0.5}, ValueError, "alpha must be a finite number > 0 and < 0.5"),
        ({"radii": "8/255"}, ValueError, "radii must be"),
        ({"radii": [0.1, -1]}, ValueError, "radii must be a finite number >= 0"),
        ({"radii": []}, ValueError, "radii must be"),
        ({"estimator": Ridge().fit(X, Y)}, TypeError, "Ridge is a regressor"),
        ({"y": Y}, ValueError, "not seen in fit"),
    ],
)
def test_what_is_wrong_is_named(linear, change, error, message):
    given = {"estimator": linear, "X": X, "y": LABELS, "radii": 0.1, "sigma": 0.1, "n_samples": 10} | change
    with pytest.raises(error, match=message):
        certified_accuracy(**given)
