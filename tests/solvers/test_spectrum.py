"""One eigendecomposition for all regularisations: against refits without each row, hat matrices, and flows."""

import numpy as np
import pytest
import scipy.linalg

from ntkrobust_sk import InaccurateSolveError, SingularGramError, solve
from ntkrobust_sk.solvers.filters import GradientFlow, Ridge
from ntkrobust_sk.solvers.spectrum import spectrum

N, C = 100, 3
RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(N, 3))
TARGETS = np.sin(INPUTS) + INPUTS[:, :1] + 0.1 * RANDOM.normal(size=(N, C))
WEIGHT = RANDOM.integers(0, 4, size=N) + RANDOM.integers(0, 2, size=N) * 0.5


def gram_of(rank, n=N):
    """A kernel of random tangents of this rank: C outputs whose kernels differ and are correlated."""
    x = INPUTS[:n]
    features = [np.cos(x @ np.random.default_rng(c).normal(size=(3, 150)) + c) * (1 + c) for c in range(C)]
    full = np.einsum("cik,djk->ijcd", features, features) / 150
    diagonal = np.einsum("ijcc->ijc", full)
    return {2: diagonal.mean(2), 3: diagonal, 4: full}[rank]


def predicted(gram, dual, offset):
    equation = {2: "nm,mc->nc", 3: "nmc,mc->nc", 4: "nmcd,md->nc"}[gram.ndim]
    return np.einsum(equation, gram, dual) + offset


def fitted_dual(gram, targets, weight, of):
    """What the estimators fit, by solving or by the matrix exponential."""
    offset = np.average(targets, axis=0, weights=weight)
    if isinstance(of, Ridge):
        return solve(gram, targets - offset, alpha=of.alpha, sample_weight=weight), offset
    n = len(gram)
    weight = np.ones(n) if weight is None else weight
    root = np.sqrt(weight)
    if gram.ndim == 4:
        diagonal = np.einsum("iicc->ic", gram).mean(1)
        time, size = of.time / np.average(diagonal, weights=weight), n * C
        A = gram.transpose(0, 2, 1, 3).reshape(size, size) * np.outer(np.repeat(root, C), np.repeat(root, C))
        filtered = scipy.linalg.solve(A + 1e-12 * np.eye(size), np.eye(size) - scipy.linalg.expm(-time * A))
        right = np.repeat(root, C) * (targets - offset).ravel()
        return (np.repeat(root, C) * (filtered @ right)).reshape(n, C), offset
    time = of.time / np.average(np.einsum("iic->ic", gram.reshape(n, n, -1)).mean(1), weights=weight)
    dual = np.empty(targets.shape)
    for c in range(targets.shape[1]):
        A = (gram if gram.ndim == 2 else gram[:, :, c]) * np.outer(root, root)
        filtered = scipy.linalg.solve(A + 1e-12 * np.eye(n), np.eye(n) - scipy.linalg.expm(-time * A))
        dual[:, c] = root * (filtered @ (root * (targets - offset)[:, c]))
    return dual, offset


def refits(gram, targets, weight, of, rows):
    """The predictions of each row by a fit to all others, one after the other."""
    found = []
    for i in rows:
        rest = np.delete(np.arange(len(gram)), i)
        of_rest = None if weight is None else weight[rest]
        dual, offset = fitted_dual(gram[np.ix_(rest, rest)], targets[rest], of_rest, of)
        found.append(predicted(gram[np.ix_([i], rest)], dual, offset)[0])
    return np.array(found)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("alpha", [1e-4, 1.0])
def test_leaving_one_out_equals_refits_at_100_rows(alpha, weight):
    gram = gram_of(2)
    found = spectrum(gram, TARGETS, weight).left_out(Ridge(alpha))
    expected = refits(gram, TARGETS, weight, Ridge(alpha), range(N))
    np.testing.assert_allclose(found, expected, atol=1e-8 * abs(expected).max())


@pytest.mark.parametrize("weight", [None, WEIGHT[:30]], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("of", [Ridge(1e-2), GradientFlow(30.0)], ids=["ridge", "flow"])
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_leaving_one_out_equals_refits_for_every_kernel_and_filter(rank, of, weight):
    gram, targets = gram_of(rank, 30), TARGETS[:30]
    rows = range(0, 30, 5 if isinstance(of, Ridge) else 10)
    found = spectrum(gram, targets, weight).left_out(of)
    np.testing.assert_allclose(found[rows], refits(gram, targets, weight, of, rows), atol=1e-6)


@pytest.mark.parametrize("weight", [None, WEIGHT[:30]], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("of", [Ridge(1e-2), GradientFlow(30.0)], ids=["ridge", "flow"])
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_dual_coefficients_are_those_of_a_fit(rank, of, weight):
    gram, targets = gram_of(rank, 30), TARGETS[:30]
    expected, offset = fitted_dual(gram, targets, weight, of)
    found = spectrum(gram, targets, weight)
    np.testing.assert_allclose(found.dual(of), expected, atol=1e-6 * abs(expected).max())
    np.testing.assert_allclose(found.offset, offset)


@pytest.mark.parametrize("of", [Ridge(0.05), GradientFlow(20.0)], ids=["ridge", "flow"])
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_generalised_cross_validation_is_that_of_the_dense_hat_matrix(rank, of):
    n = 12
    gram, targets, weight = gram_of(rank, n), TARGETS[:n], WEIGHT[:n] + 0.5

    def fitted(columns):
        dual, offset = fitted_dual(gram, columns, weight, of)
        return predicted(gram, dual, offset)

    # column by column, what fits make of unit targets
    hat = [fitted(unit.reshape(n, C)).ravel() for unit in np.eye(n * C)]
    freedom = 1 - np.trace(hat) / (n * C)
    error = np.average(((targets - fitted(targets)) ** 2).mean(1), weights=weight)
    assert spectrum(gram, targets, weight).gcv(of) == pytest.approx(error / freedom**2, rel=1e-6)


def test_a_time_fits_as_its_flow_does_step_by_step():
    gram, y, rate = gram_of(2, 20), TARGETS[:20], 1e-4
    scale = np.trace(gram) / 20
    dual, centred = np.zeros(y.shape), y - y.mean(0)
    for _ in range(int(5.0 / scale / rate)):
        dual += rate * (centred - gram @ dual)
    np.testing.assert_allclose(spectrum(gram, y).dual(GradientFlow(5.0)), dual, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("of", [Ridge(1e-2), Ridge(10.0), GradientFlow(30.0)], ids=str)
@pytest.mark.parametrize("rank", [2, 3])
def test_a_series_in_the_rows_ridges_gives_what_divisions_for_each_row_give(rank, of, monkeypatch):
    found = spectrum(gram_of(rank, 60), TARGETS[:60], WEIGHT[:60])
    by_series = found.left_out(of)
    monkeypatch.setattr("ntkrobust_sk.solvers.spectrum.SLOW_SERIES", -1)
    assert found._terms(found.systems[0], of.resolvents()[0][1], found._scales_left_out()) is None
    np.testing.assert_allclose(by_series, found.left_out(of), atol=1e-10)


def test_a_filter_is_the_sum_of_its_resolvents():
    eigenvalues = np.array([0.0, 1e-9, 1e-3, 0.5, 3.0, 1e4])
    for of in (Ridge(0.3), GradientFlow(0.1), GradientFlow(1e5)):
        summed = sum((gamma / (eigenvalues + zeta * 2.0)).real for gamma, zeta in of.resolvents())
        np.testing.assert_allclose(summed, of(eigenvalues, 2.0), atol=1e-11 * of(np.zeros(1), 2.0)[0])
        np.testing.assert_allclose(1 - eigenvalues * of(eigenvalues, 2.0), of.left(eigenvalues, 2.0), atol=1e-9)


def test_rows_of_weight_zero_are_predicted_by_all_others():
    gram, weight = gram_of(2, 30), np.r_[0.0, np.ones(28), 0.0]
    found, of = spectrum(gram, TARGETS[:30], weight), Ridge(0.1)
    dual, offset = fitted_dual(gram, TARGETS[:30], weight, of)
    np.testing.assert_allclose(found.left_out(of)[[0, 29]], predicted(gram[[0, 29]], dual, offset), atol=1e-9)


def test_a_weight_of_k_counts_like_k_copies_in_what_is_fitted():
    gram, weight = gram_of(2, 20), np.r_[2.0, 3.0, np.ones(18)]
    copies = np.repeat(np.arange(20), weight.astype(int))
    repeated = spectrum(gram[np.ix_(copies, copies)], TARGETS[copies]).dual(Ridge(0.1))
    summed = np.array([repeated[copies == i].sum(0) for i in range(20)])
    np.testing.assert_allclose(spectrum(gram, TARGETS[:20], weight).dual(Ridge(0.1)), summed, atol=1e-8)


def test_what_is_singular_or_too_little_regularised_is_an_error_with_advice():
    gram = gram_of(2, 30)
    gram = gram[np.ix_(np.r_[0:30, 0], np.r_[0:30, 0])]
    found = spectrum(gram, np.r_[TARGETS[:30], TARGETS[:1]])
    for call in (found.dual, found.left_out, found.gcv):
        with pytest.raises(SingularGramError, match=r"too little regularisation.*larger alpha"):
            call(Ridge(0.0))
    negative = spectrum(gram - 1e-3 * np.trace(gram) / 31 * np.eye(31), np.ones(31))
    with pytest.raises(SingularGramError, match="shorter time"):
        negative.dual(GradientFlow(1e3))
    with pytest.raises(SingularGramError, match="mean diagonal"):
        spectrum(np.zeros((3, 3)), np.ones(3))


def test_bad_input_is_refused():
    gram = gram_of(2, 5)
    for message, arguments in (
        ("must have shape", (gram[:4], TARGETS[:5])),
        ("must have shape", (gram, TARGETS[:4])),
        ("finite", (gram, np.full((5, 1), np.nan))),
        ("finite", (np.full((5, 5), np.inf), TARGETS[:5])),
        ("symmetric", (np.triu(gram), TARGETS[:5])),
        ("sample_weight", (gram, TARGETS[:5], -np.ones(5))),
    ):
        with pytest.raises(ValueError, match=message):
            spectrum(*arguments)
    with pytest.raises(ValueError, match="two of positive weight or more, got n_samples = 5, 1 of them"):
        spectrum(gram, TARGETS[:5], np.r_[1.0, np.zeros(4)]).left_out(Ridge(1.0))
    for wrong in (-1, np.nan, "x", True):
        with pytest.raises(ValueError, match="alpha must be"):
            Ridge(wrong)
    for wrong in (0, -1, np.inf):
        with pytest.raises(ValueError, match="time must be"):
            GradientFlow(wrong)


FILTERS = [Ridge(1e-3), Ridge(1.0), GradientFlow(1.0), GradientFlow(1e3)]


@pytest.mark.parametrize("of", FILTERS, ids=str)
@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e-60, 1e160, 1e300])
def test_answers_are_the_same_for_kernels_of_any_size(size, of):
    plain, scaled = (spectrum(gram_of(2, 30) * by, TARGETS[:30]) for by in (1.0, size))
    assert scaled.holds(of) and scaled.scale / size == pytest.approx(plain.scale)
    np.testing.assert_allclose(scaled.left_out(of), plain.left_out(of), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(scaled.dual(of) * size, plain.dual(of), rtol=1e-6, atol=1e-10)
    assert scaled.gcv(of) == pytest.approx(plain.gcv(of), rel=1e-9)


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e200, 1e300])
def test_weights_of_any_size_are_those_near_one_with_the_ridge_over_them(size):
    plain = spectrum(gram_of(2, 30), TARGETS[:30], WEIGHT[:30])
    scaled = spectrum(gram_of(2, 30), TARGETS[:30], WEIGHT[:30] * size)
    near, far = Ridge(1e-2), Ridge(1e-2 * size)
    np.testing.assert_allclose(scaled.left_out(far), plain.left_out(near), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(scaled.dual(far), plain.dual(near), rtol=1e-9, atol=1e-10)
    assert scaled.gcv(far) == pytest.approx(plain.gcv(near), rel=1e-9)


def test_the_scale_of_the_others_is_not_what_rounding_leaves_beside_a_heavy_row():
    weight, gram = np.ones(30), np.diag(np.linspace(1, 2, 30))
    weight[0] = 1e20
    found = spectrum(gram, TARGETS[:30], weight).left_out(Ridge(1e8))
    np.testing.assert_allclose(found[0], TARGETS[1:30].mean(0), rtol=1e-12)


@pytest.mark.parametrize("of", [Ridge(1e300), Ridge(1e307), GradientFlow(1e-300)], ids=str)
def test_huge_ridges_predict_the_mean_of_the_others(of):
    found = spectrum(gram_of(2, 30), TARGETS[:30])
    expected = (TARGETS[:30].sum(0) - TARGETS[:30]) / 29
    np.testing.assert_allclose(found.left_out(of), expected, atol=1e-10)
    assert found.gcv(of) == pytest.approx(found.gcv(Ridge(1e10)), rel=1e-6)


def test_ridges_below_rounding_are_none_in_every_score():
    found = spectrum(gram_of(2, 30) + np.eye(30), TARGETS[:30])
    small = [Ridge(1e-200), Ridge(1e-300), GradientFlow(1e200), GradientFlow(1e308)]
    left_out = found.left_out_each([Ridge(1e-16), *small])
    for each in left_out[1:]:
        np.testing.assert_allclose(each, left_out[0], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose([found.gcv(of) for of in small[:2]], found.gcv(Ridge(1e-16)), rtol=1e-9)


def test_a_ridge_beyond_the_range_of_numbers_is_called_so():
    found = spectrum(50 * np.eye(30), TARGETS[:30])
    for of in (Ridge(1e308), GradientFlow(1e-308)):
        assert not found.holds(of)
        with pytest.raises(
            ValueError, match=r"mean diagonal of the Gram matrix, 50.*beyond float64.*smaller alpha"
        ):
            found.dual(of)
    with pytest.raises(InaccurateSolveError, match=r"dual coefficients of .* are beyond float64: targets up to"):
        spectrum(1e-200 * np.eye(30), 1e160 * TARGETS[:30]).dual(Ridge(1.0))
