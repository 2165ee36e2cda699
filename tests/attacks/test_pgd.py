"""Attacks: the contract of every attack, an independent implementation, closed forms and bad input."""

import itertools
import pickle
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from norms_in_numpy import DUALS, lengths
from scipy.optimize import minimize
from scipy.stats import kstest

from ntkrobust_sk import CNN, MLP, FullNTK, Model, Stateless, Variables, linearize
from ntkrobust_sk.attacks.losses import example_losses
from ntkrobust_sk.attacks.norms import L2, NORMS
from ntkrobust_sk.attacks.pgd import FGSM, PGD, Clean, stronger_example
from ntkrobust_sk.attacks.threat_model import project_into
from ntkrobust_sk.attacks.tiled import attack_in_tiles
from ntkrobust_sk.execution import loops
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.kernels.predictors import make_predictor

KEY = jax.random.key(0)
IMAGE = (4, 4, 2)
N_CLASSES, N, EPSILON = 3, 8, 0.2
LINEAR = Stateless(lambda params, x: x.reshape(len(x), -1) @ params["kernel"] + params["bias"])


# Victims: everything that maps inputs to scores


@cache
def dense_network(dtype):
    return random_model(MLP(n_outputs=N_CLASSES, widths=(8,), activation="tanh"), dtype)


def random_model(network, dtype):
    with enable_x64(False):
        params, state = jax.jit(network.init, static_argnums=1)(KEY, IMAGE)
    return Model(network, Variables(jax.tree.map(lambda leaf: leaf.astype(dtype), params), state))


def linearised_network(dtype):
    model = linearize(dense_network(dtype))
    displacement = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=dtype)), model.variables.params)
    displacement = jax.tree.map(lambda d, leaf: d.reshape(leaf.shape), displacement, model.variables.params)
    return Model(model.network, Variables(displacement, model.variables.state))


def kernel_machine(dtype):
    support = np.random.default_rng(5).uniform(size=(6, *IMAGE))
    dual = np.random.default_rng(6).normal(size=(6, N_CLASSES))
    return make_predictor(FullNTK(), dense_network(dtype), support, dual, np.zeros(N_CLASSES))


def bare_function(dtype):
    kernel = jnp.asarray(np.random.default_rng(7).normal(size=(32, N_CLASSES)), dtype)
    return lambda x: jnp.sin(x.reshape(len(x), -1)) @ kernel


VICTIMS = {
    "dense": dense_network,
    "convolutional": lambda dtype: random_model(CNN(N_CLASSES, (4,), (2,), activation="tanh"), dtype),
    "linearised": linearised_network,
    "kernel machine": kernel_machine,
    "function": bare_function,
}
victim = cache(lambda kind, dtype: VICTIMS[kind](dtype))
each_norm = pytest.mark.parametrize("norm", NORMS)
# compiling for every victim takes its time, and what is special about L1 does not depend on the victim
each_victim_and_norm = pytest.mark.parametrize(
    "kind, norm", [*itertools.product(VICTIMS, ["linf", "l2"]), ("dense", "l1")]
)

BOUNDS = {
    "scalar": (0.0, 1.0),
    "per feature": (np.linspace(-0.3, 0.0, 32), np.linspace(1.0, 1.4, 32).reshape(IMAGE)),
    "none": None,
}


def attacks_under_contract(norm, bounds):
    numbers = {"epsilon": EPSILON, "norm": norm, "bounds": bounds}
    return [
        FGSM(**numbers),
        PGD(**numbers, n_steps=4),
        PGD(**numbers, n_steps=3, step_size=3 * EPSILON),
        PGD(**numbers, n_steps=2, random_start=False, n_restarts=2),
    ]


def images(dtype="float32", n=N, seed=1):
    """Inputs that touch both bounds, and their labels."""
    rng = np.random.default_rng(seed)
    x = np.clip(rng.normal(0.5, 0.4, size=(n, *IMAGE)), 0, 1)
    return jnp.asarray(x, dtype), jnp.asarray(rng.integers(N_CLASSES, size=n), jnp.int32)


def assert_in_ball_and_bounds(x_adv, x, attack):
    """The bounds hold exactly, the ball up to one spacing of floating numbers in every feature."""
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype
    spacing = np.spacing(np.abs(np.asarray([x, x_adv])).max())
    slack = spacing * {"linf": 1, "l2": np.sqrt(x[0].size), "l1": x[0].size}[attack.norm]
    delta = np.asarray(x_adv, np.longdouble) - np.asarray(x, np.longdouble)
    assert (lengths(delta, attack.norm) <= np.asarray(attack.epsilon, x.dtype) + slack).all()
    if attack.bounds is not None:
        low, high = (np.broadcast_to(np.asarray(b, x.dtype).reshape(-1), (x[0].size,)) for b in attack.bounds)
        flat = np.asarray(x_adv).reshape(len(x), -1)
        assert (low <= flat).all() and (flat <= high).all()


def mean_loss(model, x, y):
    return float(example_losses(model(x), y).mean())


# The contract of every attack


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, norm, bounds, dtype",
    [
        # each victim with bounds of each feature and in double precision; what bounds do to a norm is one for all
        *((kind, norm, "per feature", "float32") for kind in VICTIMS for norm in ("linf", "l2")),
        *((kind, norm, "per feature", "float64") for kind, norm in zip(VICTIMS, 3 * ["linf", "l2"], strict=False)),
        *(("dense", norm, bounds, "float32") for norm in NORMS for bounds in BOUNDS if bounds != "per feature"),
        ("dense", "l1", "per feature", "float32"),
        ("dense", "l1", "per feature", "float64"),
    ],
)
def test_every_attack_stays_in_ball_and_bounds_keeps_shape_and_dtype_and_raises_the_loss(
    kind, norm, bounds, dtype
):
    with enable_x64(dtype == "float64"):
        model, (x, y) = victim(kind, dtype), images(dtype)
        for attack in attacks_under_contract(norm, BOUNDS[bounds]):
            x_adv = attack(model, x, y, key=KEY)
            assert_in_ball_and_bounds(x_adv, x, attack)
            assert mean_loss(model, x_adv, y) > mean_loss(model, x, y) + 0.01
            np.testing.assert_array_equal(x_adv, attack(model, x, y, key=KEY))


@pytest.mark.slow
@each_victim_and_norm
def test_epsilon_zero_returns_the_inputs_themselves(kind, norm):
    x, y = images()
    for attack in (FGSM(0, norm), PGD(0.0, n_steps=2, norm=norm), PGD(0, n_steps=2, step_size=1.0, norm=norm)):
        np.testing.assert_array_equal(attack(victim(kind, "float32"), x, y, key=KEY), x)


@pytest.mark.slow
@each_norm
@pytest.mark.parametrize("kind", ["dense", "convolutional"])
def test_another_key_starts_elsewhere_and_without_a_random_start_the_key_does_not_matter(kind, norm):
    x, y = images()
    still = {"epsilon": EPSILON, "n_steps": 1, "step_size": 0.0, "norm": norm}
    start = PGD(**still)(victim(kind, "float32"), x, y, key=KEY)
    other = PGD(**still)(victim(kind, "float32"), x, y, key=jax.random.key(1))
    assert (np.abs(start - other).reshape(N, -1).max(1) > 1e-3).all()
    np.testing.assert_array_equal(PGD(**still, random_start=False)(victim(kind, "float32"), x, y, key=KEY), x)


@pytest.mark.slow
@each_norm
def test_the_first_restart_differs_from_the_second(norm):
    still = PGD(EPSILON, n_steps=1, step_size=0.0, norm=norm, n_restarts=2, bounds=None)
    x, _ = images()
    towards = jax.tree_util.Partial(lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], 1))
    best = still(towards, x, jnp.zeros(N, int), key=KEY)
    first = PGD(EPSILON, n_steps=1, step_size=0.0, norm=norm, bounds=None)(towards, x, jnp.zeros(N, int), key=KEY)
    kept = (best == first).all((1, 2, 3))
    assert kept.any() and not kept.all()


def test_clean_is_the_input_itself():
    x, y = images()
    assert Clean()(victim("dense", "float32"), x, y, key=KEY) is x
    assert project_into(x, x, Clean()) is x


@pytest.mark.slow
@each_norm
@pytest.mark.parametrize("bounds", BOUNDS)
def test_whatever_an_attack_returns_is_projected_into_ball_and_bounds(norm, bounds):
    x, _ = images()
    attack = PGD(EPSILON, norm=norm, bounds=BOUNDS[bounds])
    projected = project_into(x + 10 * jnp.sin(jnp.arange(x.size).reshape(x.shape)), x, attack)
    assert_in_ball_and_bounds(projected, x, attack)
    np.testing.assert_allclose(project_into(projected, x, attack), projected, atol=1e-7)


@pytest.mark.slow
def test_inputs_in_another_dtype_than_the_model_keep_theirs():
    with enable_x64(True):
        for model_dtype, dtype in (("float32", "float64"), ("float64", "float32")):
            x, y = images(dtype)
            attack = PGD(EPSILON, n_steps=2)
            assert_in_ball_and_bounds(attack(victim("dense", model_dtype), x, y, key=KEY), x, attack)


# Rows do not know of each other


@pytest.mark.slow
@each_victim_and_norm
def test_an_example_does_not_depend_on_the_other_rows_of_its_call(kind, norm):
    attack, model = PGD(EPSILON, n_steps=3, norm=norm), victim(kind, "float32")
    (x, y), (x_other, y_other) = images(), images(seed=2)
    whole = attack(model, x, y, key=KEY)
    keep = np.arange(N) % 3 == 1
    mixed = attack(model, jnp.where(keep[:, None, None, None], x, x_other), jnp.where(keep, y, y_other), key=KEY)
    np.testing.assert_array_equal(mixed[keep], whole[keep])
    assert not (mixed == whole).all()


@pytest.mark.slow
@each_norm
def test_in_tiles_the_tile_size_does_not_matter(norm):
    attack, model = PGD(EPSILON, n_steps=3, norm=norm), victim("dense", "float32")
    x, y = (np.asarray(a) for a in images())
    whole = attack(model, x, y, key=KEY)
    for rows in (3, N):
        tiled = attack_in_tiles(attack, model, x, y, key=KEY, rows=rows)
        assert isinstance(tiled, np.ndarray) and tiled.dtype == x.dtype
        np.testing.assert_allclose(tiled, whole, atol=2e-6)


@pytest.mark.parametrize("kind", ["dense", "convolutional", "kernel machine"])
def test_in_tiles_of_one_size_the_rows_that_come_later_change_no_bit(kind):
    attack, model = PGD(EPSILON, n_steps=3), victim(kind, "float32")
    x, y = (np.asarray(a) for a in images())
    whole = attack_in_tiles(attack, model, x, y, key=KEY, rows=3)
    for n in (1, 2, 5, 6):
        part = attack_in_tiles(attack, model, x[:n], y[:n], key=KEY, rows=3)
        np.testing.assert_array_equal(part, whole[:n])


def test_in_tiles_nothing_comes_of_nothing():
    x, y = (np.asarray(a) for a in images())
    assert attack_in_tiles(PGD(EPSILON), victim("dense", "float32"), x[:0], y[:0], key=KEY, rows=4).shape == (
        0,
        *IMAGE,
    )


@pytest.mark.slow
@each_norm
@pytest.mark.parametrize("bounds", BOUNDS)
def test_in_tiles_examples_lie_in_ball_and_bounds_to_the_last_bit(norm, bounds, tmp_path):
    rng = np.random.default_rng(0)
    low, high = BOUNDS[bounds] or (-3, 3)
    low, high = (
        np.asarray(np.broadcast_to(np.reshape(b, -1), 32), np.float32).reshape(IMAGE) for b in (low, high)
    )
    X = np.clip(rng.uniform(-0.2, 1.2, size=(2000, *IMAGE)).astype(np.float32), low, high)

    def outwards(model, x, y, *, key):
        return x + 10 * jax.random.normal(key, x.shape)

    for epsilon in (8 / 255, 0.1, 1e-5, 0.7):
        outwards.epsilon, outwards.norm, outwards.bounds = epsilon, norm, BOUNDS[bounds]
        np.save(
            tmp_path / "x.npy",
            attack_in_tiles(outwards, victim("dense", "float32"), X, np.zeros(2000, int), key=KEY, rows=500),
        )
        x_adv = np.load(tmp_path / "x.npy")
        assert x_adv.dtype == np.float32
        length = lengths(x_adv.astype(float) - X, norm)
        assert length.max() <= epsilon and np.median(length) > 0.5 * epsilon
        if BOUNDS[bounds] is not None:
            assert (low <= x_adv).all() and (x_adv <= high).all()


def test_in_tiles_a_foreign_attack_that_leaves_the_ball_is_brought_back():
    class Outside:
        epsilon, norm, bounds = EPSILON, "linf", (0.0, 1.0)

        def __call__(self, model, x, y, *, key):
            return x + 5

    x, y = (np.asarray(a) for a in images())
    result = attack_in_tiles(Outside(), victim("dense", "float32"), x, y, key=KEY, rows=4)
    np.testing.assert_allclose(result, np.minimum(x + EPSILON, 1), atol=1e-6)


def test_one_key_for_each_example_is_the_same_as_one_key_folded_with_the_positions():
    x, y = images()
    keys = jnp.stack([jax.random.fold_in(KEY, i) for i in range(N)])
    attack, model = PGD(EPSILON, n_steps=2), victim("dense", "float32")
    expected = attack(model, x, y, key=KEY)
    np.testing.assert_array_equal(attack(model, x, y, key=keys), expected)
    order = np.arange(N)[::-1].copy()
    np.testing.assert_array_equal(attack(model, x[order], y[order], key=keys[order])[order], expected)
    np.testing.assert_array_equal(attack(model, x, y, key=jax.random.PRNGKey(0)), expected)


# Loops


@pytest.mark.slow
@each_victim_and_norm
def test_the_compiled_loop_and_the_python_loop_agree(kind, norm, monkeypatch):
    x, y = images()
    results = []
    for fused in (True, False):
        monkeypatch.setattr(loops, "prefers_compiled_loop", lambda *_, fused=fused: fused)
        results.append(PGD(EPSILON, n_steps=4, norm=norm)(victim(kind, "float32"), x, y, key=KEY))
    np.testing.assert_allclose(*results, atol=2e-6)


def channels_first(x):
    """Convolved images with channels first, a form that no gradient is rewritten in."""
    x = jax.lax.conv_general_dilated(x.transpose(0, 3, 1, 2), jnp.ones((2, x.shape[3], 3, 3)), (1, 1), "SAME")
    return x.sum((2, 3))


@pytest.mark.slow
def test_only_what_is_slow_in_a_compiled_loop_runs_in_a_python_loop():
    x, _ = images()
    victims = {kind: as_pytree(victim(kind, "float32")) for kind in VICTIMS}
    slow = as_pytree(channels_first)
    assert all(loops.prefers_compiled_loop(model, x) for model in victims.values())
    assert loops.prefers_compiled_loop(slow, x) == (jax.default_backend() != "cpu")
    assert jax.jit(lambda x: x + loops.prefers_compiled_loop(slow, x))(0.0) == 1.0


def as_pytree(model):
    return model if isinstance(model, Model) or jax.tree.leaves(model) != [model] else jax.tree_util.Partial(model)


@pytest.mark.parametrize("fused", [True, False])
def test_no_step_waits_for_the_host(fused, monkeypatch):
    monkeypatch.setattr(loops, "prefers_compiled_loop", lambda *_, **__: fused)
    attack = PGD(EPSILON, n_steps=2, n_restarts=2)
    x, y = images()
    # Under tracing there are no values, so whatever looked at one would raise.
    traced = jax.eval_shape(lambda m, x, y, k: attack(m, x, y, key=k), victim("dense", "float32"), x, y, KEY)
    assert traced.shape == x.shape


class CountingNetwork:
    """An affine network that counts how often it is traced."""

    def __init__(self):
        self.traces = 0

    def apply(self, params, state, x, *, train=False):
        self.traces += 1
        return jnp.tanh(x.reshape(len(x), -1)) @ params, state


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False])
@each_norm
def test_other_numbers_and_new_weights_do_not_compile_again(fused, norm, monkeypatch):
    monkeypatch.setattr(loops, "prefers_compiled_loop", lambda *_, **__: fused)
    network, (x, y) = CountingNetwork(), images()
    PGD(0.1, n_steps=2, norm=norm)(Model(network, Variables(jnp.ones((32, 3)))), x, y, key=KEY)
    before = network.traces
    assert before > 0
    for weights in (jnp.ones((32, 3)), jax.random.normal(KEY, (32, 3))):
        model = Model(network, Variables(weights))
        PGD(0.3, n_steps=3, norm=norm)(model, x, y, key=jax.random.key(9))
        PGD(1, n_steps=5, step_size=0.01, norm=norm, bounds=(-1, 2))(model, x, y, key=KEY)
        PGD(np.float32(0.2), random_start=False, norm=norm, bounds=None)(model, x, y, key=KEY)
        FGSM(0.05, norm=norm)(model, x, y, key=KEY)
    assert network.traces == before


def test_a_bare_function_is_compiled_once_for_all_its_calls():
    calls = []

    def model(x):
        calls.append(x)
        return jnp.sin(x.reshape(len(x), -1)) @ jnp.ones((32, 3))

    x, y = images()
    PGD(0.1, n_steps=2)(model, x, y, key=KEY)
    before = len(calls)
    PGD(0.2, n_steps=4)(model, x, y, key=KEY)
    assert before > 0 and len(calls) == before


# Against an independent implementation and closed forms


def start_by_hand(key, shape, norm, epsilon):
    if norm == "linf":
        return epsilon * np.asarray(jax.random.uniform(key, shape, "float32", minval=-1, maxval=1), np.float64)
    if norm == "l1":
        key_direction, key_rest = jax.random.split(key)
        direction = np.asarray(jax.random.laplace(key_direction, shape, "float32"), np.float64)
        rest = float(jax.random.exponential(key_rest, (), "float32"))
        return epsilon * direction / (np.abs(direction).sum() + rest)
    key_direction, key_radius = jax.random.split(key)
    direction = np.asarray(jax.random.normal(key_direction, shape, "float32"), np.float64)
    radius = float(jax.random.uniform(key_radius, (), "float32")) ** (1 / direction.size)
    return epsilon * radius * direction / np.linalg.norm(direction)


def l1_projection(delta, epsilon, low, high):
    """The nearest point of the L1 ball with low <= point <= high, by trying every piece of a linear sum."""
    size, room = np.abs(delta).ravel(), np.where(delta > 0, high, -low).ravel()

    def total(rate):
        return np.clip(size - rate, 0, room).sum()

    corners = np.unique([0, *size, *np.maximum(size - room, 0)])
    right = next(i for i, rate in enumerate(corners) if total(rate) <= epsilon)
    rate = corners[right]
    if right:
        below = corners[right - 1]
        rate = below + (rate - below) * (total(below) - epsilon) / (total(below) - total(rate))
    return np.sign(delta) * np.clip(np.abs(delta) - rate, 0, room.reshape(delta.shape))


def l1_step(g, z, low, high):
    """One of the largest gradients that can move; what is steeper and cannot is pushed against its bound."""
    largest = np.abs(g)[np.where(g > 0, z < high, z > low)].max()
    return np.sign(g) * (np.abs(g) >= largest)


def pgd_by_hand(model, x, y, key, *, epsilon, n_steps, step_size, norm, low, high):
    """Every example on its own, one step after the other."""

    def loss(z, label):
        scores = model(z[None])[0]
        return jnp.log(jnp.exp(scores).sum()) - scores[label]

    gradient, result = jax.jit(jax.grad(loss)), []
    for i, (x_i, y_i) in enumerate(zip(np.asarray(x, np.float64), y, strict=True)):
        delta = start_by_hand(jax.random.fold_in(key, i), x_i.shape, norm, epsilon)
        z = np.clip(x_i + delta, low, high)
        if norm == "l1":
            z = x_i + l1_projection(delta, epsilon, low - x_i, high - x_i)
        for _ in range(n_steps):
            g = np.asarray(gradient(z, y_i), np.float64)
            steepest = {"linf": np.sign(g), "l2": g / np.linalg.norm(g), "l1": l1_step(g, z, low, high)}[norm]
            delta = z - x_i + step_size * steepest
            if norm == "linf":
                delta = np.clip(delta, -epsilon, epsilon)
            elif norm == "l1":
                delta = l1_projection(delta, epsilon, low - x_i, high - x_i)
            elif np.linalg.norm(delta) > epsilon:
                delta *= epsilon / np.linalg.norm(delta)
            z = np.clip(x_i + delta, low, high)
        result.append(z)
    return np.stack(result)


@pytest.mark.slow
@each_victim_and_norm
def test_pgd_is_the_projected_ascent_of_its_definition(kind, norm):
    model, (x, y) = victim(kind, "float32"), images()
    attack = PGD(EPSILON, n_steps=5, norm=norm, bounds=(0.0, 1.0))
    numbers = {"epsilon": EPSILON, "n_steps": 5, "step_size": 2 * EPSILON / 5, "norm": norm, "low": 0, "high": 1}
    with enable_x64(True):
        expected = pgd_by_hand(victim(kind, "float64"), x, y, KEY, **numbers)
    np.testing.assert_allclose(attack(model, x, y, key=KEY), expected, atol=5e-6)


def affine_model(n_outputs, seed=3):
    rng = np.random.default_rng(seed)
    params = {"kernel": rng.normal(size=(32, n_outputs)), "bias": rng.normal(size=n_outputs)}
    return Model(LINEAR, Variables(jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)))


@pytest.mark.slow
def test_fgsm_on_an_affine_model_is_its_closed_form():
    model, (x, y) = affine_model(N_CLASSES), images()
    kernel = np.asarray(model.variables.params["kernel"], np.float64)
    scores = np.asarray(model(x), np.float64)
    softmax = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    gradient = (softmax - np.eye(N_CLASSES)[y]) @ kernel.T
    largest = np.abs(gradient) == np.abs(gradient).max(1, keepdims=True)
    steepest = {
        "linf": np.sign(gradient),
        "l2": gradient / np.linalg.norm(gradient, axis=1, keepdims=True),
        "l1": np.sign(gradient) * largest,
    }
    for norm, direction in steepest.items():
        bounds = (0, 1) if norm != "l1" else (-1, 2)
        expected = np.clip(x + EPSILON * direction.reshape(x.shape), *bounds)
        np.testing.assert_allclose(FGSM(EPSILON, norm, bounds)(model, x, y, key=KEY), expected, atol=1e-6)


def greediest(x, away, epsilon, low, high):
    """In the L1 ball a linear function is largest where the steepest features go to their bounds, one by one."""
    result = x.reshape(len(x), -1).astype(float)
    for row, slope in zip(result, away.reshape(len(x), -1), strict=True):
        left = epsilon
        for i in np.argsort(-np.abs(slope)):
            step = min(left, high - row[i] if slope[i] > 0 else row[i] - low)
            row[i], left = row[i] + np.sign(slope[i]) * step, left - step
    return result.reshape(x.shape)


@pytest.mark.slow
@each_norm
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_pgd_reaches_the_optimum_on_an_affine_classifier(norm, bounds):
    """The worst point is known: for two classes the loss rises along the difference of their weights."""
    if norm == "l2" and bounds is not None:
        bounds = (-EPSILON, 1 + EPSILON)
    model, (x, y) = affine_model(2), images()
    y = y % 2
    kernel = np.asarray(model.variables.params["kernel"], np.float64).T
    away = kernel[1 - y] - kernel[y]
    low, high = (-np.inf, np.inf) if bounds is None else bounds
    optimum = np.sign(away) if norm == "linf" else away / np.linalg.norm(away, axis=1, keepdims=True)
    optimum = np.clip(x + EPSILON * optimum.reshape(x.shape), low, high)
    if norm == "l1":
        optimum = greediest(np.asarray(x), away.reshape(x.shape), EPSILON, low, high)
    x_adv = PGD(EPSILON, n_steps=60, step_size=EPSILON / 2, norm=norm, bounds=bounds)(model, x, y, key=KEY)
    np.testing.assert_allclose(x_adv, optimum, atol=1e-5)


@each_norm
def test_the_margin_of_an_affine_classifier_falls_by_epsilon_times_the_dual_norm(norm):
    model, (x, y) = affine_model(2), images()
    y = y % 2
    attack = PGD(EPSILON, n_steps=60, step_size=EPSILON / 2, norm=norm, bounds=None)
    kernel = np.asarray(model.variables.params["kernel"], np.float64)
    dual_norm = np.linalg.norm(kernel[:, 0] - kernel[:, 1], ord=DUALS[norm])

    def margin(x):
        scores = np.asarray(model(x), np.float64)
        return scores[np.arange(N), y] - scores[np.arange(N), 1 - y]

    np.testing.assert_allclose(margin(x) - margin(attack(model, x, y, key=KEY)), EPSILON * dual_norm, rtol=1e-4)


@each_norm
def test_real_targets_are_left_behind_along_the_residual(norm):
    model, (x, _) = affine_model(1), images()
    targets = jnp.asarray(np.random.default_rng(8).normal(size=(N, 1)), jnp.float32)
    kernel = np.asarray(model.variables.params["kernel"], np.float64)[:, 0]
    largest = np.abs(kernel) == np.abs(kernel).max()
    steepest = {"linf": np.sign(kernel), "l2": kernel / np.linalg.norm(kernel), "l1": np.sign(kernel) * largest}
    direction = steepest[norm]
    residual = np.asarray(model(x) - targets, np.float64)
    optimum = np.asarray(x) + EPSILON * (np.sign(residual) * direction).reshape(x.shape)
    attack = PGD(EPSILON, n_steps=60, step_size=EPSILON / 2, norm=norm, random_start=False, bounds=None)
    np.testing.assert_allclose(attack(model, x, targets, key=KEY), optimum, atol=1e-5)


def test_real_targets_of_several_outputs_and_integer_like_floats_give_the_squared_error():
    scores = jnp.asarray([[1.0, 2.0], [0.0, -1.0]])
    np.testing.assert_array_equal(example_losses(scores, jnp.asarray([[0.0, 0.0], [1.0, 1.0]])), [5.0, 5.0])


@pytest.mark.slow
def test_the_loss_of_labels_is_their_cross_entropy():
    scores = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    labels = np.array([0, 3, 1, 1, 2], np.uint8)
    expected = np.log(np.exp(scores).sum(1)) - scores[np.arange(5), labels]
    np.testing.assert_allclose(example_losses(jnp.asarray(scores), jnp.asarray(labels)), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_geometry_of_the_norms_is_that_of_numpy(dtype):
    with enable_x64(dtype == "float64"):
        v = np.random.default_rng(0).normal(size=(7, *IMAGE)).astype(dtype)
        v[0] = 0
        length = np.sqrt((v.astype(np.float64) ** 2).sum((1, 2, 3), keepdims=True))
        tolerance = {"rtol": 8 * np.finfo(dtype).eps, "atol": 0}
        unit = np.divide(v, length, out=np.zeros(v.shape), where=length > 0)
        np.testing.assert_allclose(NORMS["l2"].steepest(jnp.asarray(v)), unit, **tolerance)
        np.testing.assert_array_equal(NORMS["linf"].steepest(jnp.asarray(v)), np.sign(v))
        for epsilon in (0.0, 0.5, 100.0):
            shrunk = v * np.minimum(1, epsilon / np.where(length > 0, length, 1))
            np.testing.assert_allclose(NORMS["l2"].project(jnp.asarray(v), epsilon), shrunk, **tolerance)
            clipped = np.clip(v, -epsilon, epsilon)
            np.testing.assert_allclose(NORMS["linf"].project(jnp.asarray(v), epsilon), clipped, **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_point_of_the_l1_ball_within_bounds_is_that_of_a_general_solver(seed):
    rng = np.random.default_rng(seed)
    delta, room = rng.normal(size=7), rng.uniform(0, 0.6, size=7)
    room[:2] = (np.inf, 0)
    with enable_x64(True):
        found = NORMS["l1"].project(jnp.asarray(delta[None]), 0.9, jnp.asarray(room[None]))[0]
        assert (np.asarray(found) * delta >= 0).all() and (np.abs(found) <= room).all()
        assert np.abs(found).sum() == pytest.approx(0.9)
        # what lies inside stays where it is, also without bounds
        np.testing.assert_array_equal(NORMS["l1"].project(jnp.asarray(delta[None]), 100.0)[0], delta)
    sizes = {"type": "ineq", "fun": lambda u: 0.9 - u.sum()}
    away = np.abs(delta)
    options = {"bounds": [(0, r) for r in room], "constraints": sizes, "tol": 1e-14, "method": "SLSQP"}
    best = minimize(lambda u: ((u - away) ** 2).sum(), np.zeros(7), **options)
    np.testing.assert_allclose(np.abs(found), best.x, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_gradients_whose_squares_are_no_floating_numbers_still_have_a_direction(scale):
    direction = np.array([[0.6, -0.8, 0.0]], np.float32)
    np.testing.assert_allclose(L2().steepest(jnp.asarray(direction * np.float32(scale))), direction, rtol=1e-5)
    far = L2().project(jnp.asarray(direction * np.float32(scale)), scale / 2)
    np.testing.assert_allclose(far, direction * np.float32(scale / 2), rtol=1e-5)


def sure_of_the_first_class(margin, x):
    return jnp.stack([margin + x.sum(1), 0.01 * x[:, 0]], 1)


@pytest.mark.slow
@each_norm
@pytest.mark.parametrize("margin", [5, 20, 60])
def test_a_model_that_is_sure_of_its_answer_is_attacked_like_any_other(norm, margin):
    """Its loss, exp(-margin), vanishes in 1 + loss, so neither loss nor gradient may be taken from there."""
    x = jnp.full((2, 4), 0.5)
    y = jnp.zeros(2, int)
    model = jax.tree_util.Partial(sure_of_the_first_class, jnp.float32(margin))
    still = FGSM(0.3, norm=norm, bounds=None)(model, x, y, key=KEY)
    # the first feature matters a hundredth less
    steps = {"linf": 0.3, "l2": 0.15, "l1": np.array([0, 0.1, 0.1, 0.1])}
    np.testing.assert_allclose(still, x - steps[norm], atol=1e-2)
    restarts = {"epsilon": 0.3, "n_steps": 1, "step_size": 0.0, "norm": norm, "bounds": None}
    once, often = (PGD(**restarts, n_restarts=n)(model, x, y, key=KEY) for n in (1, 10))
    assert (often.sum(1) <= once.sum(1)).all() and (often.sum(1) < once.sum(1)).any()
    np.testing.assert_allclose(example_losses(model(x), y), np.exp(-margin - 1.995), rtol=0.01)


# Random starts


@pytest.mark.slow
@pytest.mark.parametrize("n_features", [1, 3])
@each_norm
def test_random_starts_are_uniform_in_the_ball(norm, n_features):
    n, epsilon = 4000, 0.7
    still = PGD(epsilon, n_steps=1, step_size=0.0, norm=norm, bounds=None)
    x = jnp.zeros((n, n_features))
    start = np.asarray(still(lambda x: jnp.tile(x.sum(1)[:, None], 2), x, jnp.zeros(n, int), key=KEY)) / epsilon
    assert kstest(lengths(start, norm).astype(float) ** n_features, "uniform").pvalue > 0.01
    n = n_features
    variance = {"linf": 1 / 3, "l2": 1 / (n + 2), "l1": 2 / ((n + 1) * (n + 2))}[norm]
    n = len(start)
    np.testing.assert_allclose(start.mean(0), 0, atol=4 * np.sqrt(variance / n))
    np.testing.assert_allclose(start.T @ start / n, variance * np.eye(n_features), atol=0.02)


def test_random_starts_of_neighbouring_rows_are_uncorrelated():
    still = PGD(1.0, n_steps=1, step_size=0.0, bounds=None)
    x = jnp.zeros((4000, 1))
    start = np.asarray(still(lambda x: jnp.tile(x, 2), x, jnp.zeros(4000, int), key=KEY))[:, 0]
    assert abs(np.corrcoef(start[:-1], start[1:])[0, 1]) < 4 / np.sqrt(4000)


# Restarts


@pytest.mark.slow
@each_norm
@pytest.mark.parametrize("kind", ["dense", "convolutional"])
def test_more_restarts_never_do_worse_for_any_example(kind, norm):
    model, (x, _) = victim(kind, "float32"), images()
    y = jnp.argmax(model(x), 1)
    badness = []
    for n_restarts in (1, 2, 5):
        attack = PGD(EPSILON, n_steps=1, norm=norm, n_restarts=n_restarts)
        x_adv = attack(model, x, y, key=KEY)
        assert_in_ball_and_bounds(x_adv, x, attack)
        scores = model(x_adv)
        badness.append((np.asarray(scores.argmax(1) != y), np.asarray(example_losses(scores, y))))
    for (fooled, loss), (fooled_more, loss_more) in itertools.pairwise(badness):
        assert (fooled_more >= fooled).all()
        same = fooled == fooled_more
        assert (loss_more[same] >= loss[same] - 1e-6).all()
    assert badness[-1][1].mean() > badness[0][1].mean()


@pytest.mark.slow
def test_of_two_runs_the_wrong_answer_is_kept_even_at_a_lower_loss():
    fooled_at_low_loss = jnp.asarray([[0.0, 0.1, -5.0]])
    correct_at_high_loss = jnp.asarray([[0.1, 0.0, 0.09]])
    y, identity = jnp.asarray([0]), jax.tree_util.Partial(lambda x: x)
    assert example_losses(correct_at_high_loss, y) > example_losses(fooled_at_low_loss, y)
    for pair in itertools.permutations((fooled_at_low_loss, correct_at_high_loss)):
        np.testing.assert_array_equal(stronger_example(identity, *pair, y), fooled_at_low_loss)


def test_of_two_wrong_answers_and_of_two_real_targets_the_higher_loss_is_kept():
    low, high = jnp.asarray([[0.0, 1.0]]), jnp.asarray([[0.0, 2.0]])
    identity = jax.tree_util.Partial(lambda x: x)
    for pair, y in itertools.product(
        itertools.permutations((low, high)), (jnp.asarray([0]), jnp.asarray([[0.0, 0.0]]))
    ):
        np.testing.assert_array_equal(stronger_example(identity, *pair, y), high)


# Configuration


CONFIGURATIONS = [
    Clean(),
    FGSM(4 / 255),
    PGD(8 / 255, n_steps=7, step_size=0.01, norm="l2", random_start=False, n_restarts=3, bounds=None),
    PGD(0.5, bounds=(np.zeros(3), [1, 2, 3])),
    PGD(np.float64(0.5), n_steps=np.int64(3), bounds=(0, 255)),
]


@pytest.mark.parametrize("attack", CONFIGURATIONS, ids=lambda attack: type(attack).__name__)
def test_attacks_are_hashable_comparable_picklable_and_their_repr_makes_them_again(attack):
    names = {"PGD": PGD, "FGSM": FGSM, "Clean": Clean, "np": np}
    for copy in (pickle.loads(pickle.dumps(attack)), eval(repr(attack), names)):
        assert copy == attack and hash(copy) == hash(attack) and copy is not attack
    assert len({attack, *CONFIGURATIONS}) == len(CONFIGURATIONS)
    with pytest.raises(AttributeError):
        attack.epsilon = 1.0


def test_attacks_with_equal_bounds_are_equal_however_the_bounds_are_written():
    bounds = [(0, 1), (0.0, 1.0), [np.float32(0), np.array(1)]]
    assert len({PGD(0.1, bounds=b) for b in bounds}) == 1
    assert PGD(0.1, bounds=(np.zeros((2, 2)), 1)) == PGD(0.1, bounds=([0, 0, 0, 0], 1.0))


@pytest.mark.parametrize("make", [PGD, FGSM])
@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf"), "0.1", None, np.array([0.1, 0.2])])
def test_an_epsilon_that_is_no_radius_is_refused(make, epsilon):
    with pytest.raises(ValueError, match="epsilon must be a finite number >= 0 in units of the data"):
        make(epsilon)


@pytest.mark.parametrize("step_size", [-1, float("nan"), "big"])
def test_a_step_size_that_is_no_length_is_refused(step_size):
    with pytest.raises(ValueError, match="step_size must be a finite number >= 0"):
        PGD(0.1, step_size=step_size)


@pytest.mark.parametrize("name", ["n_steps", "n_restarts"])
@pytest.mark.parametrize("value", [0, -3, 2.5, "4", None])
def test_counts_that_are_no_positive_integers_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, got {value!r}"):
        PGD(0.1, **{name: value})


@pytest.mark.parametrize("make", [PGD, FGSM])
@pytest.mark.parametrize("norm", ["l0", "Linf", np.inf, None])
def test_an_unknown_norm_is_answered_with_the_known_ones(make, norm):
    with pytest.raises(ValueError, match=r"unknown norm .*; known are 'linf', 'l2', 'l1'"):
        make(0.1, norm=norm)


@pytest.mark.parametrize("make", [PGD, FGSM])
@pytest.mark.parametrize(
    "bounds", [(1, 0), (0, float("nan")), (0,), (0, 1, 2), 1, "ab", ([0, 0], [1, 1, 1]), ([0, 2], 1), (None, 1)]
)
def test_bounds_that_are_no_range_are_refused(make, bounds):
    with pytest.raises(ValueError, match=r"bounds must be .*\(low, high\)"):
        make(0.1, bounds=bounds)


@pytest.mark.parametrize("attack", [PGD(0.1), FGSM(0.1)], ids=["PGD", "FGSM"])
@pytest.mark.parametrize("shift", [-0.01, 0.01])
def test_inputs_outside_of_the_bounds_are_refused_with_their_range(attack, shift):
    x, y = (np.asarray(a) for a in images())
    for call in (attack, lambda *args, key: attack_in_tiles(attack, *args, key=key, rows=4)):
        with pytest.raises(ValueError, match=r"bounds are \(0.0, 1.0\), but X ranges from .* scale the data"):
            call(victim("dense", "float32"), x + np.float32(shift), y, key=KEY)


def test_one_feature_outside_of_its_own_bounds_is_refused_without_printing_all_bounds():
    x, y = (np.asarray(a) for a in images())
    high = np.ones(IMAGE)
    high[0, 0, 0] = x[:, 0, 0, 0].max() - 0.01
    with pytest.raises(ValueError, match=r"bounds are \(0.0, [\d.]+\) in feature \(0, 0, 0\), but X"):
        PGD(0.1, bounds=(0.0, high))(victim("dense", "float32"), x, y, key=KEY)


@pytest.mark.slow
def test_data_on_bounds_that_rounding_moved_are_inside():
    bounds = (-0.1, 0.7)
    x = np.broadcast_to(np.asarray(bounds, np.float32)[:, None, None, None], (2, *IMAGE))
    assert float(x.min()) < bounds[0]
    attack = PGD(0.1, n_steps=1, bounds=bounds)
    assert_in_ball_and_bounds(attack(victim("dense", "float32"), x, np.zeros(2, int), key=KEY), x, attack)


def test_bounds_for_another_number_of_features_are_refused():
    x, y = images()
    attack = PGD(0.1, bounds=(np.zeros(5), np.ones(5)))
    for inputs in (x, np.asarray(x)):
        with pytest.raises(ValueError, match=r"bounds have 5 numbers, but inputs have 32 features"):
            attack(victim("dense", "float32"), inputs, y, key=KEY)


def test_targets_of_the_wrong_shape_are_refused():
    model, (x, y) = victim("dense", "float32"), images()
    with pytest.raises(ValueError, match=r"real targets must be shaped like the scores, \(8, 3\), got \(8,\)"):
        PGD(0.1)(model, x, y.astype(float), key=KEY)
    for labels in (y[:1], jnp.eye(N_CLASSES, dtype=int)[y]):
        with pytest.raises(ValueError, match=r"integer labels must be of shape \(8,\).*one-hot"):
            PGD(0.1)(model, x, labels, key=KEY)


@pytest.mark.parametrize("attack", [PGD(0.1), FGSM(0.1)], ids=["PGD", "FGSM"])
def test_integer_inputs_are_refused_rather_than_truncated(attack):
    x, y = (np.asarray(a) for a in images())
    for call in (attack, lambda *args, key: attack_in_tiles(attack, *args, key=key, rows=4)):
        with pytest.raises(TypeError, match=r"inputs must be floating.*got uint8"):
            call(victim("dense", "float32"), x.astype(np.uint8), y, key=KEY)


def test_what_is_no_key_is_refused():
    model, (x, y) = victim("dense", "float32"), images()
    with pytest.raises(TypeError, match=r"key must be a JAX PRNG key, such as jax.random.key\(0\), got 0"):
        PGD(0.1)(model, x, y, key=0)
    with pytest.raises(ValueError, match=r"one for each of 8 examples, got keys of shape \(3,\)"):
        PGD(0.1)(model, x, y, key=jax.random.split(KEY, 3))


@pytest.mark.slow
def test_a_model_with_a_plain_number_among_its_leaves_can_be_attacked():
    x, y = images()
    scaled = jax.tree_util.Partial(lambda scale, x: scale * x.reshape(len(x), -1)[:, :3], 2.0)
    assert PGD(0.1, n_steps=2)(scaled, x, y, key=KEY).shape == x.shape
