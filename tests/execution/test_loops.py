"""How models are applied to all rows (as flat rows, in tiles, one ahead), and how steps are repeated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk.execution import loops
from ntkrobust_sk.execution.tiles import as_pytree, evaluate, on_rows, one_ahead


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 4, 2, 1), (0, 4, 2, 1)])
def test_a_model_of_rows_sees_its_inputs_in_their_shape(shape):
    x, seen = jnp.arange(np.prod(shape), dtype=float).reshape(shape), []

    def model(x):
        seen.append(x)
        return x

    on, rows = on_rows(model, x)
    assert rows.shape == (shape[0], np.prod(shape[1:], dtype=int))
    on(rows)
    np.testing.assert_array_equal(seen[0], x)


def test_models_of_rows_share_what_was_compiled():
    trees = [
        jax.tree.structure(on_rows(jax.tree_util.Partial(jnp.add, n), jnp.ones((2, 3, 1)))[0]) for n in (1.0, 2.0)
    ]
    assert trees[0] == trees[1]


def test_each_result_waits_for_the_next_one_to_be_asked_for():
    asked = []

    def results():
        for number in range(4):
            asked.append(number)
            yield number

    found = one_ahead(results())
    assert asked == []
    for number in range(4):
        assert next(found) == number
        assert asked == list(range(min(number + 2, 4)))
    assert list(found) == []
    assert list(one_ahead([])) == []


@pytest.mark.parametrize("n", [1, 4, 9])
def test_tiles_come_in_order(n):
    X = np.arange(2.0 * n, dtype=np.float32).reshape(n, 2)
    np.testing.assert_array_equal(evaluate(lambda x: x + 1, X, rows=4), X + 1)


# Repeated steps


def slid(by, state, now, x):
    """A step that notes what it is given."""
    first, second = now
    return state * by + first * x.sum() + second


def schedule(length):
    assert length
    return np.arange(length, dtype=np.float32), np.ones(length, np.float32)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_schedule_is_gone_through_as_far_as_there_are_steps(compiled, monkeypatch):
    monkeypatch.setattr(loops, "prefers_compiled_loop", lambda *_: compiled)
    x, start = np.ones(3, np.float32), np.float32(1)
    for n_steps in (0, 1, 4):
        options = {"evaluated": (jnp.sin, x), "static": (2,), "schedule": schedule, "length": 6}
        found, expected = loops.repeat(slid, n_steps, start, x, **options), start
        for step in range(n_steps):
            expected = 2 * expected + 3 * step + 1
        assert found == expected


def test_other_numbers_of_steps_compile_nothing():
    traces = []

    def step(state, number, x):
        traces.append(number)
        return state + number * x

    for n_steps in (1, 5, 9):
        assert loops.repeat(step, n_steps, 0.0, 1.0, evaluated=(as_pytree(jnp.sin), 1.0)) == sum(range(n_steps))
    assert len(set(map(type, traces))) == 1 and len(traces) <= 2
