"""TRAK's scores: the formula of the paper on gradients of our own, averaged over models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from sklearn.datasets import load_digits

from ntkrobust_sk import MLP, AdversarialKernelTrainer, Model, Stateless, Variables, trak_scores
from ntkrobust_sk.attribution import trak

rng = np.random.default_rng(0)
y = np.arange(24) % 3
X = (rng.normal(size=(24, 4)) + 2 * np.eye(4)[y]).astype(np.float32)
QUERIES, ANSWERS = X[:5] + 0.1, y[:5]
NETWORK = MLP(n_outputs=3, widths=(6,), activation="tanh")
MODELS = [Model(NETWORK, NETWORK.init(jax.random.key(seed), (4,))) for seed in range(2)]


def margins_by_hand(model, x, y):
    z = np.asarray(model(x), np.float64)
    true = z[np.arange(len(y)), y]
    z[np.arange(len(y)), y] = -np.inf
    return true - scipy.special.logsumexp(z, axis=1)


def test_margins_are_the_log_odds_of_each_class():
    margins = Model(trak.Margins(NETWORK), MODELS[0].variables)
    for label in range(3):
        expected = margins_by_hand(MODELS[0], X, np.full(24, label))
        np.testing.assert_allclose(margins(X)[:, label], expected, rtol=1e-4, atol=1e-5)


def test_scores_are_those_of_the_formula_on_exact_gradients():
    """Gradients by a plain Jacobian, in place of their projections."""

    @jax.jit
    def gradients(model, x):
        return jax.jacobian(lambda p: Model(trak.Margins(NETWORK), Variables(p))(x))(model.variables.params)

    def exact(model, x, y):
        leaves = jax.tree.leaves(gradients(model, x))
        rows = np.concatenate([np.asarray(leaf).reshape(len(x), 3, -1) for leaf in leaves], axis=2)
        return rows[np.arange(len(x)), y].astype(float)

    products, doubts = [], []
    for model in MODELS:
        phi, phi_fit = exact(model, QUERIES, ANSWERS), exact(model, X, y)
        ridge = 0.5 * (phi_fit**2).sum(1).mean() * np.eye(phi_fit.shape[1])
        products.append(phi @ np.linalg.inv(phi_fit.T @ phi_fit + ridge) @ phi_fit.T)
        doubts.append(1 - scipy.special.expit(margins_by_hand(model, X, y)))
    expected = np.mean(products, axis=0) * np.mean(doubts, axis=0)
    # projections are exact on average: the error falls as one over the root of their number
    found = trak_scores(MODELS, X, y, QUERIES, ANSWERS, n_components=2**14, alpha=0.5)
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_both_sides_of_the_ridge_are_one_formula():
    phi_fit, phi = rng.normal(size=(30, 8)), rng.normal(size=(4, 8))
    ridge = 0.3 * (phi_fit**2).sum(1).mean()
    expected = phi @ np.linalg.inv(phi_fit.T @ phi_fit + ridge * np.eye(8)) @ phi_fit.T
    np.testing.assert_allclose(trak._products(phi, phi_fit, 0.3), expected, rtol=1e-9)
    few = phi_fit[:5]
    ridge = 0.3 * (few**2).sum(1).mean()
    expected = phi @ np.linalg.inv(few.T @ few + ridge * np.eye(8)) @ few.T
    np.testing.assert_allclose(trak._products(phi, few, 0.3), expected, rtol=1e-9)


def test_a_projection_is_that_of_its_row_in_any_company():
    alone = trak_scores(MODELS[0], X, y, QUERIES[:1], ANSWERS[:1], n_components=16)
    together = trak_scores(MODELS[:1], X, y, QUERIES, ANSWERS, n_components=16)
    np.testing.assert_allclose(alone, together[:1], rtol=1e-4, atol=1e-6 * np.abs(together).max())
    np.testing.assert_array_equal(alone, trak_scores(MODELS[0], X, y, QUERIES[:1], ANSWERS[:1], n_components=16))
    other = trak_scores(MODELS[0], X, y, QUERIES[:1], ANSWERS[:1], n_components=16, random_state=1)
    assert not np.allclose(alone, other, rtol=1e-2)


@pytest.mark.slow
def test_training_without_the_most_helpful_fifth_lowers_margins_more_than_without_any_fifth():
    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32)[:200], labels[:200]
    fit, test = np.arange(130), np.arange(130, 200)

    def trained(rows):
        options = {"max_epochs": 15, "batch_size": 32}
        made = (AdversarialKernelTrainer(MLP(widths=(16,)), random_state=seed, **options) for seed in (0, 1))
        return [trainer.fit(images[rows], labels[rows]).model_ for trainer in made]

    def margin(rows):
        return np.mean([margins_by_hand(model, images[test], labels[test]) for model in trained(rows)])

    scores = trak_scores(trained(fit), images[fit], labels[fit], images[test], labels[test], n_components=512)
    without = margin(fit[np.argsort(-scores.sum(0))[26:]])
    assert without < margin(np.random.default_rng(0).permutation(fit)[26:]) - 0.2


ONE_LOGIT = Model(Stateless(lambda params, x: x @ params), Variables(jnp.ones((4, 1))))


@pytest.mark.parametrize(
    "change, error, said",
    [
        ({"models": NETWORK}, TypeError, "models must be a ntkrobust_sk.Model"),
        ({"models": []}, TypeError, "models must be a ntkrobust_sk.Model"),
        ({"models": [MODELS[0], 3]}, TypeError, r"models\[1\] must be a ntkrobust_sk.Model, got 3"),
        ({"models": ONE_LOGIT}, ValueError, "two logits or more, but the network has 1"),
        ({"y_fit": y + 1}, ValueError, r"y_fit must hold positions 0, ..., 2 among the network's logits"),
        ({"y_fit": np.array(["a"] * 24)}, ValueError, "y_fit must hold positions"),
        ({"y": y}, ValueError, "y must hold positions .* one for each of 5 inputs"),
        ({"X": QUERIES[:, :3]}, ValueError, "X and X_fit must hold inputs of one shape"),
        ({"X_fit": X * np.nan}, ValueError, "finite"),
        ({"alpha": 0}, ValueError, "alpha must be a finite number > 0"),
        ({"n_components": 0}, ValueError, "n_components must"),
        ({"random_state": -1}, ValueError, "random_state must"),
        ({"memory": 3000, "n_components": 64}, MemoryError, "64 projections of 29 examples take"),
        ({"memory": "much"}, ValueError, "memory"),
    ],
)
def test_what_does_not_fit_is_said(change, error, said):
    given = {"models": MODELS[0], "X_fit": X, "y_fit": y, "X": QUERIES, "y": ANSWERS, "n_components": 8}
    with pytest.raises(error, match=said):
        trak_scores(**(given | change))
