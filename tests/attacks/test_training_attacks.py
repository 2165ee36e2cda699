"""What adversarial training adds: one noisy step as an attack, and networks that normalise their inputs."""

import pickle
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import kstest

from ntkrobust_sk import CNN, FGSM, MLP, NFGSM, Model, Normalized, train
from ntkrobust_sk.attacks.threat_model import project_into
from ntkrobust_sk.attacks.tiled import attack_in_tiles

KEY = jax.random.key(0)
N, N_FEATURES, N_CLASSES, EPSILON = 8, 4, 3, 0.1
NETWORK = MLP(n_outputs=N_CLASSES, widths=(3,), activation="tanh")
MODEL = Model(NETWORK, NETWORK.init(jax.random.key(1), (N_FEATURES,)))
LOW, HIGH = np.linspace(-0.2, 0.0, N_FEATURES), np.linspace(1.0, 1.3, N_FEATURES)


def examples(n=N, n_features=N_FEATURES):
    """Inputs that touch both bounds, and their labels."""
    rng = np.random.default_rng(2)
    X = np.clip(rng.normal(0.5, 0.4, size=(n, n_features)), 0, 1).astype(np.float32)
    return X, rng.integers(N_CLASSES, size=n).astype(np.int32)


X, Y = examples()

BOUNDS = {"numbers": (0.0, 1.0), "per feature": (LOW, HIGH), "none": None}
each_bounds = pytest.mark.parametrize("bounds", BOUNDS)
each_length = pytest.mark.parametrize("noise, step_size", [(2.0, None), (0.5, 0.025), (1.0, 0.3), (0.0, None)])


def limits(bounds):
    low, high = (-np.inf, np.inf) if bounds is None else bounds
    return np.float32(low), np.float32(high)


def by_hand(attack, key, X, Y):
    """N-FGSM written out in NumPy, but for the noise and the gradient."""
    low, high = limits(attack.bounds)
    unit = [
        jax.random.uniform(jax.random.fold_in(key, i), X.shape[1:], minval=-1, maxval=1) for i in range(len(X))
    ]
    noisy = np.clip(X + attack.noise * attack.epsilon * np.array(unit), low, high)

    def loss(x):
        return -jax.nn.log_softmax(MODEL(x))[jnp.arange(len(Y)), Y].sum()

    step = attack.epsilon if attack.step_size is None else attack.step_size
    return np.clip(noisy + step * np.sign(jax.grad(loss)(jnp.asarray(noisy, jnp.float32))), low, high)


# One noisy step


@pytest.mark.slow
@each_bounds
@each_length
def test_a_noisy_step_stays_in_bounds_and_moves_no_farther_than_noise_and_step_together(bounds, noise, step_size):
    attack = NFGSM(EPSILON, noise, step_size, BOUNDS[bounds])
    x_adv = np.asarray(attack(MODEL, X, Y, key=KEY))
    assert x_adv.shape == X.shape and x_adv.dtype == X.dtype
    low, high = limits(BOUNDS[bounds])
    assert (low <= x_adv).all() and (x_adv <= high).all()
    moved, reach = np.abs(x_adv - X).max(), noise * EPSILON + (EPSILON if step_size is None else step_size)
    assert 0.5 * reach < moved <= reach + 1e-6


@pytest.mark.slow
@each_bounds
@each_length
def test_a_noisy_step_is_the_one_written_out_by_hand(bounds, noise, step_size):
    attack = NFGSM(EPSILON, noise, step_size, BOUNDS[bounds])
    np.testing.assert_allclose(attack(MODEL, X, Y, key=KEY), by_hand(attack, KEY, X, Y), atol=1e-6)


def test_by_default_it_reaches_out_of_the_ball_and_is_projected_only_where_scores_are_taken():
    attack = NFGSM(EPSILON, bounds=None)
    x_adv = attack(MODEL, X, Y, key=KEY)
    assert np.abs(x_adv - X).max() > 2 * EPSILON
    for projected in (project_into(x_adv, X, attack), attack_in_tiles(attack, MODEL, X, Y, key=KEY, rows=N)):
        np.testing.assert_allclose(projected, np.clip(x_adv, X - EPSILON, X + EPSILON), atol=1e-6)


@each_bounds
def test_without_noise_it_is_fgsm(bounds):
    expected = FGSM(EPSILON, bounds=BOUNDS[bounds])(MODEL, X, Y, key=KEY)
    for key in (KEY, jax.random.key(9)):
        np.testing.assert_array_equal(NFGSM(EPSILON, 0, bounds=BOUNDS[bounds])(MODEL, X, Y, key=key), expected)


@pytest.mark.slow
def test_without_a_step_it_is_uniform_noise():
    x = np.zeros((4, 100), np.float32)
    model = Model(NETWORK, NETWORK.init(jax.random.key(1), (100,)))
    noise = NFGSM(EPSILON, noise=1.5, step_size=0.0, bounds=None)(model, x, np.zeros(4, np.int32), key=KEY)
    assert kstest(np.ravel(noise), "uniform", (-1.5 * EPSILON, 3 * EPSILON)).pvalue > 1e-3
    assert len(np.unique(noise, axis=0)) == 4


def test_with_epsilon_zero_nothing_moves():
    np.testing.assert_array_equal(NFGSM(0.0)(MODEL, X, Y, key=KEY), X)


def test_the_same_key_gives_the_same_result_to_the_bit_and_another_key_another():
    attack = NFGSM(EPSILON)
    first = attack(MODEL, X, Y, key=KEY)
    np.testing.assert_array_equal(attack(MODEL, X, Y, key=KEY), first)
    other = attack(MODEL, X, Y, key=jax.random.key(1))
    assert (np.abs(first - other).max(1) > 1e-3).all()


def test_an_example_does_not_depend_on_the_other_rows_and_may_have_a_key_of_its_own():
    attack = NFGSM(EPSILON)
    whole = attack(MODEL, X, Y, key=KEY)
    keys = jnp.stack([jax.random.fold_in(KEY, i) for i in range(N)])
    np.testing.assert_array_equal(attack(MODEL, X, Y, key=keys), whole)
    order = np.arange(N)[::-1].copy()
    np.testing.assert_array_equal(attack(MODEL, X[order], Y[order], key=keys[order])[order], whole)


@pytest.mark.slow
def test_it_is_a_training_attack_with_the_noise_of_the_training_key():
    def trained(attack, seed=0):
        options = {"optimizer": optax.sgd(0.1), "batch_size": 4, "attacks": (attack,)}
        *_, state = train(MODEL, X, Y, key=jax.random.key(seed), **options)
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.model.variables.params)])

    first = trained(NFGSM(EPSILON))
    np.testing.assert_array_equal(trained(NFGSM(EPSILON)), first)
    assert (trained(NFGSM(EPSILON), seed=1) != first).any() and (trained(FGSM(EPSILON)) != first).any()


def test_attacks_are_compared_hashed_and_pickled_by_value():
    attack = NFGSM(EPSILON, bounds=([0, 0], np.ones(2)))
    same = NFGSM(EPSILON, 2.0, None, ((0.0, 0.0), (1.0, 1.0)))
    assert attack == same == pickle.loads(pickle.dumps(attack)) and hash(attack) == hash(same)
    assert attack != NFGSM(EPSILON, 1.0, bounds=attack.bounds)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"epsilon": -0.1}, "epsilon must be a finite number >= 0"),
        ({"epsilon": float("nan")}, "epsilon must be a finite number >= 0"),
        ({"epsilon": "4/255"}, "epsilon must be a finite number >= 0 .* got '4/255'"),
        ({"noise": -1}, "noise must be a finite number >= 0"),
        ({"noise": float("inf")}, "noise must be a finite number >= 0"),
        ({"noise": None}, "noise must be a finite number >= 0"),
        ({"step_size": -0.1}, "step_size must be a finite number >= 0"),
        ({"step_size": float("nan")}, "step_size must be a finite number >= 0"),
        ({"bounds": (1.0, 0.0)}, "low <= high"),
        ({"bounds": 1.0}, r"bounds must be None or \(low, high\)"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        NFGSM(**{"epsilon": EPSILON} | arguments)


def test_inputs_that_do_not_fit_are_refused():
    attack = NFGSM(EPSILON)
    with pytest.raises(ValueError, match="the attack's bounds are"):
        attack(MODEL, X + 1, Y, key=KEY)
    with pytest.raises(ValueError, match="bounds have 3 numbers, but inputs have 4 features"):
        NFGSM(EPSILON, bounds=(np.zeros(3), np.ones(3)))(MODEL, jnp.asarray(X), Y, key=KEY)
    with pytest.raises(TypeError, match="inputs must be floating"):
        attack(MODEL, np.zeros((N, N_FEATURES), np.int32), Y, key=KEY)
    with pytest.raises(TypeError, match="key must be a JAX PRNG key"):
        attack(MODEL, X, Y, key=0)


# Networks that normalise

MEAN, STD = (0.5, 0.25, 0.1, 0.9), (0.5, 2.0, 0.125, 1.0)
NORMALIZED = Normalized(NETWORK, MEAN, STD)
OUTER = Model(NORMALIZED, MODEL.variables)


@pytest.mark.slow
@pytest.mark.parametrize(
    "network, shape, mean, std",
    [
        (NETWORK, (N_FEATURES,), MEAN, STD),
        (NETWORK, (N_FEATURES,), (0.5,), (0.25,)),
        (CNN(N_CLASSES, (2,), (2,)), (4, 4, 3), (0.1, 0.5, 0.9), (0.5, 0.25, 2.0)),
    ],
    ids=["per feature", "one for all", "per channel"],
)
def test_it_is_the_inner_network_on_normalised_inputs(network, shape, mean, std):
    x = np.random.default_rng(3).uniform(size=(5, *shape)).astype(np.float32)
    outer = Normalized(network, mean, std)
    variables = outer.init(KEY, shape)
    for a, b in zip(*map(jax.tree.leaves, (variables, network.init(KEY, shape))), strict=True):
        np.testing.assert_array_equal(a, b)
    normalised = ((x - np.array(mean)) / np.array(std)).astype(np.float32)
    scores = Model(outer, variables)(x)
    np.testing.assert_allclose(scores, Model(network, variables)(normalised), rtol=1e-5, atol=1e-6)
    assert not np.allclose(scores, Model(network, variables)(x), atol=1e-3)


def test_the_gradient_by_the_inputs_is_that_of_the_inner_network_over_the_standard_deviation():
    def gradient(model, x):
        return jax.grad(lambda x: (model(x) ** 2).sum())(jnp.asarray(x, jnp.float32))

    inner = gradient(MODEL, (X - np.array(MEAN)) / np.array(STD))
    np.testing.assert_allclose(gradient(OUTER, X), inner / np.array(STD), rtol=1e-4, atol=1e-6)


def test_attacks_keep_to_the_units_of_the_inputs():
    x_adv = FGSM(EPSILON, bounds=None)(OUTER, X, Y, key=KEY)
    np.testing.assert_allclose(np.abs(x_adv - X), EPSILON, atol=1e-6)
    attack = FGSM(EPSILON)
    clipped = attack(OUTER, X, Y, key=KEY)
    np.testing.assert_array_equal(clipped, project_into(clipped, X, attack))


@jax.tree_util.register_static
@dataclass(frozen=True)
class Remembering:
    """A linear network whose state is, in training, the mean of the inputs that it has seen last."""

    def apply(self, params, state, x, *, train=False):
        return x @ params, x.mean(0) if train else state


def test_the_inner_network_learns_of_training_and_keeps_its_state():
    network = Normalized(Remembering(), MEAN, STD)
    params, state = jnp.ones((N_FEATURES, N_CLASSES)), jnp.full(N_FEATURES, 7.0)
    _, evaluated = network.apply(params, state, X)
    _, trained = network.apply(params, state, X, train=True)
    np.testing.assert_array_equal(evaluated, state)
    np.testing.assert_allclose(trained, ((X - np.array(MEAN)) / np.array(STD)).mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("std", [(0.0,), (-1.0,), (float("nan"),), (float("inf"),), (1.0, 0.0, 1.0, 1.0)], ids=str)
def test_a_standard_deviation_that_is_not_positive_and_finite_is_refused(std):
    with pytest.raises(ValueError, match="std must be positive and finite, got"):
        Normalized(NETWORK, MEAN, std)


def test_normalised_networks_are_compared_hashed_and_pickled_by_value():
    same = Normalized(MLP(N_CLASSES, [3], "tanh"), list(MEAN), np.array(STD))
    assert same == NORMALIZED == pickle.loads(pickle.dumps(NORMALIZED)) and hash(same) == hash(NORMALIZED)
    others = (
        Normalized(MLP(N_CLASSES, (4,), "tanh"), MEAN, STD),
        Normalized(NETWORK, STD, STD),
        Normalized(NETWORK, MEAN, MEAN),
    )
    assert all(other != NORMALIZED for other in others)


def test_a_model_of_a_normalised_network_survives_pickling():
    again = pickle.loads(pickle.dumps(OUTER))
    assert again.network == NORMALIZED
    np.testing.assert_array_equal(again(X), OUTER(X))
