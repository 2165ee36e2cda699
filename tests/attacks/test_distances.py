"""FMN, DDN and FAB against the exact distances of linear models."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog, minimize

from ntkrobust_sk import DDN, FAB, FMN, minimal_perturbations

SCRIPT = Path(__file__).parents[2] / "examples" / "check_distances.py"
if not SCRIPT.exists():
    pytest.skip("the examples are not installed", allow_module_level=True)
spec = importlib.util.spec_from_file_location("check_distances", SCRIPT)
check_distances = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_distances)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("norm", check_distances.ORDERS)
def test_the_exact_distance_is_that_of_a_general_solver(norm, seed):
    rng = np.random.default_rng(seed)
    slope, room = np.abs(rng.normal(size=6)), rng.uniform(size=6) * (rng.uniform(size=6) > 0.3)
    missing = 0.6 * slope @ room
    if norm == "l2":
        start = 0.6 * room
        constraint = {"type": "ineq", "fun": lambda d: slope @ d - missing}
        bounds = [(0, most) for most in room]
        solved = minimize(lambda d: d @ d, start, bounds=bounds, constraints=constraint, options={"ftol": 1e-14})
        right = np.sqrt(solved.fun)
    elif norm == "l1":
        right = linprog(np.ones(6), -slope[None], [-missing], bounds=[(0, most) for most in room]).fun
    else:
        below = np.hstack([np.eye(6), -np.ones((6, 1))])
        rows = np.vstack([below, np.append(-slope, 0)])
        bounds = [*((0, most) for most in room), (0, None)]
        right = linprog(np.eye(7)[6], rows, [*np.zeros(6), -missing], bounds=bounds).fun
    assert check_distances.exact_distance(norm, slope, missing, room) == pytest.approx(right, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["half at bounds, times 1,000", "scores times 0.001", "4 classes, half at bounds"]
)
def test_every_point_is_found_and_nearly_as_near_as_can_be(case):
    for *what, found, there, median, most in check_distances.compare(case, 6):
        assert found == there, what
        assert 0.999 < median < 1.005 and (most < 1.01 or "4 classes" in case), what


@pytest.mark.slow
@pytest.mark.parametrize("attack", [*(kind(1e9, norm="l2") for kind in (FMN, FAB)), DDN(1e9)], ids=str)
def test_a_feature_at_its_bound_does_not_hide_the_nearest_point(attack):
    def model(z):
        return jnp.stack([z.sum(1), jnp.full(len(z), 0.3)], 1)

    found = minimal_perturbations(model, np.array([[0.5, 0.0]], np.float32), np.array([0]), attack)
    assert found == pytest.approx([0.2], rel=2e-3)


def test_what_rounding_brings_back_is_found_a_little_further_out():
    class Timid:
        """Finds points on the boundary itself, which are answered as before."""

        epsilon, norm, bounds = 1.0, "l2", (0.0, 1.0)

        def __call__(self, model, x, y, *, key):
            return x

        def nearest(self, model, x, y, *, key):
            return x.at[:, 0].set(0.5), jnp.abs(x[:, 0] - 0.5)

    def model(z):
        return jnp.stack([z[:, 0], jnp.full(len(z), 0.5)], 1)

    inputs = np.array([[0.75, 0.1]], np.float32)
    found = minimal_perturbations(model, inputs, np.array([0]), Timid())
    assert found == pytest.approx([0.25], rel=1e-3)


def test_ascent_finds_its_way_where_the_probability_of_a_wrong_answer_rounds_to_zero():
    from ntkrobust_sk import PGD

    model = jax.tree_util.Partial(lambda x: 1000 * jnp.stack([x[:, 0], 1 - x[:, 0]], 1))
    x = jnp.array([[0.9, 0.5]])
    assert PGD(0.5, 20)(model, x, jnp.array([0]), key=jax.random.key(0))[0, 0] < 0.5
