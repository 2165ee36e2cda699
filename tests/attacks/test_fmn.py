"""FMN and DDN: exact distances of linear models, and the contract of attacks that look for the nearest point."""

import pickle
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from norms_in_numpy import DUALS, lengths

from ntkrobust_sk import DDN, FAB, FMN, MLP, Model
from ntkrobust_sk.attacks.norms import NORMS
from ntkrobust_sk.attacks.tiled import attack_in_tiles

KEY = jax.random.key(0)
N, D = 30, 12
RNG = np.random.default_rng(0)
X = RNG.uniform(0.05, 0.95, size=(N, D)).astype(np.float32)
SLOPE = RNG.normal(size=D).astype(np.float32)
# the sign of one linear function, which vanishes in the middle of the data
LINEAR = jax.tree_util.Partial(lambda w, x: jnp.stack([(x - 0.5) @ w, -(x - 0.5) @ w], 1), jnp.asarray(SLOPE))
Y = np.asarray(LINEAR(X).argmax(1), np.int32)
ATTACKS = {norm: FMN(10.0, 60, norm, bounds=None) for norm in NORMS} | {"ddn": DDN(10.0, bounds=None)}
each_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def network():
    network = MLP(n_outputs=4, widths=(16,))
    params, state = network.init(jax.random.key(1), (D,))
    return Model(network, type(network.init(KEY, (D,)))(jax.tree.map(lambda leaf: 3 * leaf, params), state))


@pytest.mark.slow
@each_attack
def test_to_a_plane_it_finds_the_exact_distance(attack):
    points, distances = attack.nearest(LINEAR, X, Y, key=KEY)
    exact = np.abs((X - 0.5) @ SLOPE) / np.linalg.norm(SLOPE, ord=DUALS[attack.norm])
    assert (np.asarray(LINEAR(points).argmax(1)) != Y).all()
    np.testing.assert_allclose(distances, lengths(points - X, attack.norm), rtol=1e-4)
    assert (distances >= exact * (1 - 1e-4)).all()
    np.testing.assert_allclose(distances, exact, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_on_a_network_it_comes_as_near_as_fab_and_stays_in_bounds(norm):
    model = network()
    y = np.asarray(model(X).argmax(1), np.int32)
    points, distances = FMN(10.0, 60, norm).nearest(model, X, y, key=KEY)
    _, by_fab = FAB(10.0, 40, norm, n_targets=3).nearest(model, X, y, key=KEY)
    assert points.min() >= 0 and points.max() <= 1
    assert (np.asarray(model(points).argmax(1)) != y).all()
    assert np.median(np.asarray(distances) / np.asarray(by_fab)) < 1.05


@pytest.mark.slow
@each_attack
def test_wrong_answers_are_their_own_nearest_points_and_beyond_epsilon_the_input_comes_back(attack):
    y = Y.copy()
    y[:4] = 1 - y[:4]
    points, distances = (np.asarray(a) for a in attack.nearest(LINEAR, X, y, key=KEY))
    assert (distances[:4] == 0).all() and (points[:4] == X[:4]).all()
    epsilon = float(np.median(distances))
    x_adv = np.asarray(replace(attack, epsilon=epsilon)(LINEAR, X, y, key=KEY))
    far = distances > np.float32(epsilon)
    assert 0 < far.sum() < N
    np.testing.assert_array_equal(x_adv[far], X[far])
    np.testing.assert_array_equal(x_adv[~far], points[~far])


@pytest.mark.slow
def test_an_answer_that_nothing_changes_is_infinitely_far():
    constant = jax.tree_util.Partial(lambda x: jnp.stack([0 * x[:, 0] + 1, 0 * x[:, 0]], 1))
    for attack in (FMN(1.0, 10), DDN(1.0, 10)):
        points, distances = attack.nearest(constant, X, np.zeros(N, np.int32), key=KEY)
        assert np.isinf(distances).all()
        np.testing.assert_array_equal(points, X)


@pytest.mark.slow
@each_attack
def test_an_example_does_not_depend_on_the_others(attack):
    together = attack_in_tiles(attack, LINEAR, X, Y, key=KEY, rows=N)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(N))
    alone = attack_in_tiles(attack, LINEAR, X[7:9], Y[7:9], key=keys[7:9], rows=N)
    np.testing.assert_array_equal(alone, together[7:9])


def test_compiled_loops_and_python_loops_agree(monkeypatch):
    attacks = [FMN(10.0, 20, "l1"), DDN(10.0, 20)]
    compiled = [attack.nearest(LINEAR, X, Y, key=KEY)[0] for attack in attacks]
    monkeypatch.setattr("ntkrobust_sk.execution.loops.prefers_compiled_loop", lambda *_: False)
    for attack, points in zip(attacks, compiled, strict=True):
        np.testing.assert_allclose(attack.nearest(LINEAR, X, Y, key=KEY)[0], points, atol=1e-5)


@pytest.mark.slow
def test_other_numbers_do_not_compile_again():
    traces = []

    def model(x):
        traces.append(1)
        return jnp.stack([(x - 0.5) @ SLOPE, -(x - 0.5) @ SLOPE], 1)

    FMN(0.1, 3)(model, X, Y, key=KEY)
    DDN(0.1, 3)(model, X, Y, key=KEY)
    before = len(traces)
    FMN(0.3, 7, step_size=0.2, gamma=0.1, bounds=(-1, 2))(model, X, Y, key=KEY)
    DDN(0.3, 7, step_size=0.2, radius=0.3, gamma=0.1, bounds=None)(model, X, Y, key=KEY)
    assert len(traces) == before


def test_they_are_plain_values():
    for attack in (FMN(0.1, norm="l1", bounds=None), DDN(0.5, radius=2.0)):
        for copy in (pickle.loads(pickle.dumps(attack)), eval(repr(attack))):
            assert copy == attack and hash(copy) == hash(attack)


@pytest.mark.parametrize(
    "made, message",
    [
        (lambda: FMN(-1), "epsilon must be"),
        (lambda: FMN(0.1, gamma=1.0), "gamma must be a finite number > 0 and < 1"),
        (lambda: FMN(0.1, step_size=None), "step_size must be"),
        (lambda: FMN(0.1, norm="l0"), "unknown norm"),
        (lambda: DDN(0.1, n_steps=0), "n_steps must be"),
        (lambda: DDN(0.1, radius=-1), "radius must be"),
        (lambda: DDN(0.1, gamma="small"), "gamma must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()


def test_data_that_make_no_sense_are_refused():
    for attack in (FMN(0.1), DDN(0.1)):
        with pytest.raises(ValueError, match="needs integer labels"):
            attack(LINEAR, X, Y.astype(float), key=KEY)
        with pytest.raises(ValueError, match="bounds are"):
            attack(LINEAR, X + 1, Y, key=KEY)
        with pytest.raises(TypeError, match="must be a JAX PRNG key"):
            attack(LINEAR, X, Y, key=3)
