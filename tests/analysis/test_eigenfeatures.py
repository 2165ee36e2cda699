"""Eigenfeatures: a decomposition of kernel regression, and images against the dense Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from ntkrobust_sk import MLP, PGD, Clean, Model, RobustFeatureSelector, gram, ntk_features
from ntkrobust_sk.analysis.eigenfeatures import leading_eigenpairs
from ntkrobust_sk.analysis.images import (
    class_eigenvectors,
    eigenfeature_images,
    regression_coefficients,
)
from ntkrobust_sk.execution.tiles import evaluate

N, N_CLASSES = 40, 3
NETWORK = MLP(n_outputs=N_CLASSES, widths=(5,), activation="tanh")
MODEL = Model(NETWORK, NETWORK.init(jax.random.key(0), (2, 2, 1)))
ATTACK = PGD(0.1, n_steps=2)


def images(n=N, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % N_CLASSES
    X = np.clip(rng.normal(scale=0.1, size=(n, 2, 2, 1)) + (1 + y[:, None, None, None]) / 5, 0, 1)
    return X.astype(np.float32), y


X, Y = images()
X_TEST, Y_TEST = images(30, seed=1)


def dense_gradients(x, c):
    """∇f_c at every input, (n, P)."""
    leaves = jax.jacobian(lambda params: Model(NETWORK, MODEL.variables._replace(params=params))(x)[:, c])
    found = jax.tree.leaves(leaves(MODEL.variables.params))
    return np.concatenate([np.asarray(leaf).reshape(len(x), -1) for leaf in found], axis=1)


@pytest.mark.slow
def test_usefulness_is_the_accuracy_of_each_eigenvector_s_own_predictor():
    found = ntk_features("trace", MODEL, X, Y, X_TEST, Y_TEST, ATTACK, n_features=4, key=jax.random.key(0))
    K, K_test = (np.asarray(gram("trace", MODEL, rows, X), np.float64) for rows in (X, X_TEST))
    values, vectors = np.linalg.eigh((K + K.T) / 2)
    targets = np.eye(N_CLASSES)[Y] - np.eye(N_CLASSES)[Y].mean(0)
    for i in range(4):
        v = vectors[:, -1 - i]
        np.testing.assert_allclose(found.eigenvalues[i], values[-1 - i], rtol=1e-5)
        assert abs(found.eigenvectors[:, i] @ v) == pytest.approx(1, abs=1e-4)
        scores = np.outer(K_test @ v, v @ targets) / values[-1 - i]
        assert found.usefulness[i] == np.mean(scores.argmax(1) == Y_TEST)
    assert (found.robustness <= found.usefulness).all() and (found.robustness < found.usefulness).any()


@pytest.mark.slow
def test_without_an_attack_a_feature_is_as_robust_as_it_is_useful():
    found = ntk_features("pseudo", MODEL, X, Y, X_TEST, Y_TEST, Clean(), n_features=2, key=jax.random.key(0))
    np.testing.assert_array_equal(found.robustness, found.usefulness)


def test_eigenvalues_that_are_rounding_are_left_out():
    values, vectors = leading_eigenpairs(np.diag([4.0, 1.0, 1e-9, 0.0]), 4)
    assert values.tolist() == [4, 1] and vectors.shape == (4, 2)


@pytest.mark.slow
def test_a_kernel_of_higher_rank_is_refused():
    with pytest.raises(ValueError, match="rank 2"):
        ntk_features("class", MODEL, X, Y, X_TEST, Y_TEST, ATTACK, n_features=2, key=jax.random.key(0))


@pytest.fixture(scope="module")
def selector():
    return RobustFeatureSelector(MODEL, attack=ATTACK, n_features=3, n_candidates=6, random_state=0).fit(X, Y)


@pytest.mark.slow
def test_the_selector_s_features_are_scaled_coordinates_on_the_eigenvectors(selector):
    Z = selector.transform(X)
    K = np.asarray(gram("trace", MODEL, X), np.float64)
    _, vectors = leading_eigenpairs(K, 6)
    expected = vectors[:, selector.support_] * np.sqrt(selector.eigenvalues_[selector.support_])
    np.testing.assert_allclose(np.abs(Z), np.abs(expected), atol=1e-3 * np.abs(expected).max())
    np.testing.assert_allclose(Z.T @ Z, np.diag(selector.eigenvalues_[selector.support_]), atol=1e-3 * Z.var() * N)


@pytest.mark.slow
def test_the_selector_keeps_the_features_of_highest_score(selector):
    kept = selector.robustness_[selector.support_]
    left = np.delete(selector.robustness_, selector.support_)
    assert kept.min() >= left.max() and (np.diff(kept) <= 0).all()
    useful = clone(selector).set_params(criterion="usefulness").fit(X, Y)
    assert useful.usefulness_[useful.support_].min() >= np.delete(useful.usefulness_, useful.support_).max()
    leading = clone(selector).set_params(criterion="eigenvalue", attack=None).fit(X, Y)
    assert leading.support_.tolist() == [0, 1, 2]


def test_all_eigenvectors_together_are_kernel_regression():
    selector = RobustFeatureSelector(MODEL, criterion="eigenvalue", n_features=N, n_candidates=N).fit(X, Y)
    Z, Z_test = selector.transform(X).astype(float), selector.transform(X_TEST).astype(float)
    K_test = np.asarray(gram("trace", MODEL, X_TEST, X), np.float64)
    np.testing.assert_allclose(Z_test @ Z.T, K_test, atol=2e-3 * K_test.max())


@pytest.mark.slow
def test_the_selector_works_in_pipelines_with_flat_rows():
    rows, labels = load_digits(return_X_y=True)
    rows, labels = rows[:120] / 16, labels[:120]
    selector = RobustFeatureSelector(
        "mlp", attack=PGD(0.1, n_steps=1), n_candidates=5, n_features=3, random_state=0
    )
    pipeline = make_pipeline(selector, LogisticRegression(max_iter=500)).fit(rows, labels)
    assert pipeline.score(rows, labels) > 0.25
    names = pipeline[:-1].get_feature_names_out()
    assert names.tolist() == [f"robustfeatureselector{i}" for i in range(3)]


def test_ranking_by_robustness_without_an_attack_is_refused():
    with pytest.raises(ValueError, match="needs an attack"):
        RobustFeatureSelector(MODEL).fit(X, Y)


@pytest.mark.slow
def test_an_image_s_cosine_is_that_of_dense_gradients_and_rises():
    coefficients = np.random.default_rng(0).normal(size=(N, N_CLASSES))
    drawn = eigenfeature_images(MODEL, X, coefficients, n_steps=15, step_size=0.05)
    assert drawn.images.shape == (N_CLASSES, 2, 2, 1) and (drawn.images >= 0).all() and (drawn.images <= 1).all()
    grey = np.full((1, 2, 2, 1), 0.5, np.float32)
    for c in range(N_CLASSES):
        direction = coefficients[:, c] @ dense_gradients(X, c)

        def cosine(x, c=c, direction=direction):
            gradient = dense_gradients(x, c)[0]
            return gradient @ direction / np.linalg.norm(gradient) / np.linalg.norm(direction)

        assert drawn.cosines[c] == pytest.approx(cosine(drawn.images[c : c + 1]), abs=1e-4)
        assert drawn.cosines[c] > cosine(grey)


def test_regression_coefficients_solve_each_class_kernel():
    K = np.asarray(gram("class", MODEL, X), np.float64)
    coefficients = regression_coefficients(K, Y, alpha=0.1)
    for c in range(N_CLASSES):
        ridge = 0.1 * np.trace(K[:, :, c]) / N * np.eye(N)
        residual = (K[:, :, c] + ridge) @ coefficients[:, c] - np.where(c == Y, 1, -1)
        assert np.abs(residual).max() < 1e-6


def test_class_eigenvectors_favour_their_own_class():
    K = np.asarray(gram("class", MODEL, X), np.float64)
    vectors = class_eigenvectors(K, Y, index=1)
    for c in range(N_CLASSES):
        assert vectors[c == Y, c].mean() >= vectors[c != Y, c].mean()
        value = vectors[:, c] @ K[:, :, c] @ vectors[:, c]
        np.testing.assert_allclose(K[:, :, c] @ vectors[:, c], value * vectors[:, c], atol=1e-6 * K.max() * N)


@pytest.mark.slow
def test_features_are_a_model_that_attacks_go_through(selector):
    gradient = jax.grad(lambda x: selector.features_(x)[:, 0].sum())(jnp.asarray(X[:2]))
    step = 1e-2 * jnp.sign(gradient)
    rise = selector.features_(X[:2] + step)[:, 0] - selector.features_(X[:2] - step)[:, 0]
    np.testing.assert_allclose(rise, 2 * (gradient * step).sum((1, 2, 3)), rtol=2e-2)
    assert evaluate(selector.features_, X[:2], 2).shape == (2, 3)
