"""Contributions of training points: they sum to the answers of each kernel, and name the points that count."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from ntkrobust_sk import (
    MLP,
    EmpiricalNTKClassifier,
    EmpiricalNTKClassifierCV,
    EmpiricalNTKRegressor,
    Model,
    ProjectedNTK,
    TopContributions,
    gram,
)
from ntkrobust_sk.attribution import contributions, top_contributions
from ntkrobust_sk.execution.precision import enable_x64

rng = np.random.default_rng(0)
y = np.arange(40) % 3
X = rng.normal(size=(40, 4)) + np.eye(4)[y]
QUERIES = rng.normal(size=(9, 4))
NETWORK = MLP(n_outputs=3, widths=(8,), activation="tanh")
MODEL = Model(NETWORK, NETWORK.init(jax.random.key(0), (4,)))
KERNELS = ["trace", "class", "full", "pseudo"]
TERMS = {2: "nm,mc->nmc", 3: "nmc,mc->nmc", 4: "nmcd,md->nmc"}


@pytest.fixture(scope="module")
def machines():
    made = {}
    return lambda kernel: made.setdefault(
        kernel, EmpiricalNTKClassifier(MODEL, kernel=kernel, alpha=1e-3).fit(X, y)
    )


@pytest.mark.parametrize("kernel", [*KERNELS, ProjectedNTK(64)])
def test_they_sum_to_the_decision_function(kernel, machines):
    """In single precision and with a small ridge, where terms are hundreds of times as large as their sum."""
    machine = machines(kernel)
    found = machine.attribute(QUERIES)
    assert found.shape == (9, 40, 3) and found.dtype == np.float64
    np.testing.assert_allclose(
        found.sum(1) + machine.intercept_, machine.decision_function(QUERIES), rtol=0, atol=1e-6
    )
    K = np.asarray(gram(kernel, MODEL, QUERIES, X, dtype="float64"))
    expected = np.einsum(TERMS[K.ndim], K, machine.dual_coef_)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("kernel", ["trace", "full"])
def test_in_double_precision_they_sum_to_the_last_digits(kernel):
    with enable_x64(True):
        network = MLP(n_outputs=3, widths=(8,), activation="tanh")
        model = Model(network, network.init(jax.random.key(0), (4,)))
        machine = EmpiricalNTKClassifier(model, kernel=kernel, alpha=1e-6).fit(X, y)
        summed = machine.attribute(QUERIES).sum(1) + machine.intercept_
        np.testing.assert_allclose(summed, machine.decision_function(QUERIES), rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", ["nystrom", "cg"])
def test_machines_of_other_solvers_and_of_a_search_are_taken_apart_too(solver):
    for machine in (
        EmpiricalNTKClassifier(MODEL, solver=solver, alpha=0.1).fit(X, y),
        EmpiricalNTKClassifierCV(MODEL, alphas=[0.1, 1.0]).fit(X, y),
    ):
        summed = machine.attribute(QUERIES).sum(1) + machine.intercept_
        np.testing.assert_allclose(summed, machine.decision_function(QUERIES), rtol=0, atol=1e-6)


def test_of_two_classes_they_sum_to_the_one_decision():
    machine = EmpiricalNTKClassifier(MODEL, alpha=0.1).fit(X, y > 0)
    found = machine.attribute(QUERIES)
    assert found.shape == (9, 40)
    offset = machine.intercept_[1] - machine.intercept_[0]
    np.testing.assert_allclose(found.sum(1) + offset, machine.decision_function(QUERIES), rtol=0, atol=1e-6)
    top = machine.top_attributions(QUERIES, 40, target=np.zeros(9, bool))
    np.testing.assert_allclose(top.helpful_values.sum(1), -found.sum(1), rtol=1e-9)


@pytest.mark.parametrize("kernel", ["trace", "full"])
def test_of_a_regressor_they_sum_to_the_prediction(kernel):
    targets = np.stack([X[:, 0], X @ np.arange(4.0), np.sin(X[:, 1])], axis=1)
    several = EmpiricalNTKRegressor(MODEL, kernel=kernel, alpha=0.01).fit(X, targets)
    found = several.attribute(QUERIES)
    np.testing.assert_allclose(found.sum(1) + several.intercept_, several.predict(QUERIES), rtol=0, atol=1e-6)
    top = several.top_attributions(QUERIES, 2, target=1)
    np.testing.assert_array_equal(top.helpful[:, 0], found[:, :, 1].argmax(1))
    with pytest.raises(ValueError, match=r"this machine has 3 targets: give target=0, ..., or 2"):
        several.top_attributions(QUERIES, 2)
    one = EmpiricalNTKRegressor(MODEL, alpha=0.01).fit(X, X[:, 0])
    found = one.attribute(QUERIES)
    np.testing.assert_allclose(found.sum(1) + one.intercept_, one.predict(QUERIES), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(one.top_attributions(QUERIES, 1).harmful[:, 0], found.argmin(1))


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_largest_are_those_of_the_whole_matrix(kernel, machines):
    machine = machines(kernel)
    answers = machine.predict(QUERIES)
    own = machine.attribute(QUERIES)[np.arange(9), :, answers]
    expected = TopContributions.of_matrix(own, 5)
    top = machine.top_attributions(QUERIES, 5)
    np.testing.assert_array_equal(top.helpful, expected.helpful)
    np.testing.assert_array_equal(top.harmful, expected.harmful)
    np.testing.assert_allclose(top.helpful_values, expected.helpful_values, rtol=1e-9)
    np.testing.assert_allclose(top.harmful_values, expected.harmful_values, rtol=1e-9)
    assert (np.diff(top.helpful_values) <= 0).all() and (np.diff(top.harmful_values) >= 0).all()


def test_the_largest_of_many_tiles_are_found_without_room_for_the_matrix():
    many = np.tile(X, (20, 1)) + rng.normal(size=(800, 4)) * 0.1
    dual = rng.normal(size=(800, 3))
    readout = np.eye(3)[np.arange(9) % 3]
    # a matrix of the contributions takes 172,800 bytes
    top = top_contributions("trace", MODEL, QUERIES, many, dual, readout, 7, memory=100_000)
    with pytest.raises(MemoryError, match=r"contributions of shape \(9, 800, 3\) take .*, more than the budget"):
        contributions("trace", MODEL, QUERIES, many, dual, memory=100_000)
    whole = contributions("trace", MODEL, QUERIES, many, dual)
    expected = TopContributions.of_matrix(np.einsum("nmc,nc->nm", whole, readout), 7)
    np.testing.assert_array_equal(top.helpful, expected.helpful)
    np.testing.assert_array_equal(top.harmful, expected.harmful)


def test_of_equal_contributions_the_first_come_first():
    top = TopContributions.of_matrix([[1.0, 2.0, 2.0, 1.0, -1.0, -1.0]], 3)
    assert top.helpful.tolist() == [[1, 2, 0]] and top.harmful.tolist() == [[4, 5, 0]]
    copies = np.repeat(X[:1], 300, axis=0)
    top = top_contributions("trace", MODEL, X[:1], copies, np.ones((300, 1)), np.ones((1, 1)), 3)
    assert top.helpful.tolist() == [[0, 1, 2]] == top.harmful.tolist()


def test_rows_images_and_integers_are_taken_as_by_predict():
    network = MLP(n_outputs=2, widths=(3,))
    model = Model(network, network.init(jax.random.key(0), (4, 4, 1)))
    images = rng.integers(0, 3, size=(12, 4, 4, 1))
    machine = EmpiricalNTKClassifier(model, alpha=0.1).fit(images, np.array(["a", "b"] * 6))
    found = machine.attribute(images[:3])
    np.testing.assert_allclose(found, machine.attribute(images[:3].reshape(3, 16).astype(float)), rtol=1e-6)
    top = machine.top_attributions(images[:3], 2, target=["a", "b", "a"])
    sign = np.array([-1, 1, -1])[:, None]
    np.testing.assert_array_equal(top.helpful[:, 0], (sign * found).argmax(1))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_without_the_most_helpful_fifth_true_scores_fall_more_than_without_any_fifth(seed):
    """On digits; fitted again each time, by regression on indicators, since a class may lose all its images."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.random.default_rng(seed).permutation(len(images))
    fit, test = chosen[:150], chosen[150:250]
    network = MLP(n_outputs=10, widths=(16,))
    model = Model(network, network.init(jax.random.key(seed), (64,)))

    def machine_of(rows):
        return EmpiricalNTKRegressor(model, alpha=0.1).fit(images[rows] / 16, np.eye(10)[labels[rows]])

    def true_score(rows):
        return machine_of(rows).predict(images[test] / 16)[np.arange(100), labels[test]].mean()

    total = machine_of(fit).attribute(images[test] / 16)[np.arange(100), :, labels[test]].sum(0)
    others = np.random.default_rng(seed).permutation(150)[30:]
    assert true_score(fit[np.argsort(-total)[30:]]) < true_score(fit[others]) - 0.02


@pytest.mark.parametrize(
    "call, error, said",
    [
        (lambda m: m.attribute(X[:, :2]), ValueError, "X has 2 features"),
        (lambda m: m.attribute(X * np.nan), ValueError, "NaN"),
        (lambda m: m.top_attributions(X, 41), ValueError, "k must be .*40, got 41"),
        (lambda m: m.top_attributions(X, 0), ValueError, "k must be"),
        (lambda m: m.top_attributions(X, 2, target=y[:5]), ValueError, "one label for each of the 40 samples"),
        (lambda m: m.top_attributions(X, 2, target=y + 7), ValueError, "labels that were not seen in fit"),
        (lambda m: EmpiricalNTKClassifier().attribute(X), Exception, "not fitted yet"),
        (lambda m: by_descent().attribute(X), ValueError, "fitted by gradient descent, which leaves no coef"),
        (lambda m: by_descent().top_attributions(X), ValueError, "take trak_scores for a network"),
        (
            lambda m: EmpiricalNTKClassifier(MODEL, memory=60_000).fit(X, y).attribute(np.tile(X, (9, 1))),
            MemoryError,
            "contributions of shape",
        ),
        (
            lambda m: contributions("trace", MODEL, X, X, np.ones((3, 2))),
            ValueError,
            r"dual_coef must be \(m, T\)",
        ),
        (lambda m: terms(np.ones((40, 2)), kernel="class"), ValueError, "a column for each of the 3 outputs"),
        (lambda m: terms(np.ones((40, 2)), kernel="full"), ValueError, "a column for each of the 3 outputs"),
        (lambda m: terms(np.ones((40, 2)), None), TypeError, "model must be"),
        (lambda m: terms(np.full((40, 2), np.inf)), ValueError, "dual_coef"),
        (lambda m: terms(np.full((40, 2), 1e308)), FloatingPointError, "not finite"),
        (
            lambda m: top_contributions("trace", MODEL, X, X, np.ones((40, 2)), np.ones((40, 3)), 1),
            ValueError,
            r"readout must be \(40, 2\)",
        ),
        (lambda m: TopContributions.of_matrix(np.ones(3), 1), ValueError, "contributions must"),
    ],
)
def test_what_does_not_fit_is_said(call, error, said, machines):
    with pytest.raises(error, match=said):
        call(machines("trace"))


def terms(dual, model=MODEL, readout=None, kernel="trace"):
    if readout is None:
        return contributions(kernel, model, X, X, dual)
    return top_contributions(kernel, model, X, X, dual, readout, 1)


def by_descent():
    return EmpiricalNTKClassifier(MODEL, solver="sgd", max_epochs=0).fit(X, y)
