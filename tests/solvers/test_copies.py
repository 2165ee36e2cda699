"""Rows that come more than once, against fits without all of their copies."""

import numpy as np
import pytest

from ntkrobust_sk.solvers.copies import DistinctSpectrum, distinct_spectrum
from ntkrobust_sk.solvers.filters import GradientFlow, Ridge
from ntkrobust_sk.solvers.spectrum import spectrum

rng = np.random.default_rng(0)
POINTS = rng.normal(size=(8, 3))
OF = np.array([0, 1, 2, 2, 3, 4, 5, 5, 5, 6, 7, 0])
ROWS, WEIGHT = POINTS[OF], rng.integers(1, 4, len(OF)).astype(float)
TARGETS = rng.normal(size=(len(OF), 2))
FILTERS = [Ridge(0.1), Ridge(1e-3), GradientFlow(5.0)]


def kernel(x, z):
    return np.exp(-((x[:, None] - z) ** 2).sum(2) / 2)


K = kernel(ROWS, ROWS)


@pytest.mark.parametrize("of", FILTERS)
def test_coefficients_are_those_of_all_rows(of):
    found, expected = distinct_spectrum(K, ROWS, TARGETS, WEIGHT), spectrum(K, TARGETS, WEIGHT)
    assert isinstance(found, DistinctSpectrum)
    np.testing.assert_allclose(found.dual(of), expected.dual(of), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.found.offset, expected.offset)


@pytest.mark.parametrize("of", FILTERS)
def test_a_row_is_answered_by_a_fit_without_any_of_its_copies(of):
    found = distinct_spectrum(K, ROWS, TARGETS, WEIGHT).left_out(of)
    for i in range(len(OF)):
        others = OF[i] != OF
        fit = spectrum(K[np.ix_(others, others)], TARGETS[others], WEIGHT[others])
        np.testing.assert_allclose(found[i], fit.offset + K[i, others] @ fit.dual(of), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("of", FILTERS)
def test_a_weight_is_a_number_of_copies(of):
    counts = np.arange(8) % 4
    labels = rng.normal(size=(8, 1))
    weighed = distinct_spectrum(kernel(POINTS, POINTS), POINTS, labels, counts.astype(float))
    written = np.repeat(np.arange(8), counts)
    copies = distinct_spectrum(kernel(POINTS[written], POINTS[written]), POINTS[written], labels[written])
    np.testing.assert_allclose(copies.left_out(of), weighed.left_out(of)[written], rtol=1e-9, atol=1e-12)
    found = copies.found if isinstance(copies, DistinctSpectrum) else copies
    np.testing.assert_allclose(found.gcv(of), weighed.gcv(of))


def test_without_copies_nothing_changes():
    assert not isinstance(distinct_spectrum(kernel(POINTS, POINTS), POINTS, TARGETS[:8]), DistinctSpectrum)
