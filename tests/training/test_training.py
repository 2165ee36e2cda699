"""Training: against a plain reimplementation, to the bit with itself, and loud when it fails."""

import itertools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from ntkrobust_sk import (
    CNN,
    MLP,
    PGD,
    Clean,
    Linearized,
    Model,
    ResNet18,
    Stateless,
    TrainingDivergedError,
    Variables,
    linearize,
    train,
)
from ntkrobust_sk.attacks.tiled import attack_in_tiles
from ntkrobust_sk.execution.loops import repeat
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.training import initial_state
from ntkrobust_sk.training import loop as training_module
from ntkrobust_sk.training import step as step_module
from ntkrobust_sk.training.step import Batch, Step, batch_step

KEY = jax.random.key(0)
N, N_FEATURES, N_CLASSES, BATCH = 22, 4, 3, 8
RATE, MOMENTUM = 0.3, 0.9
SGD = optax.sgd(RATE, momentum=MOMENTUM)
NETWORK = MLP(n_outputs=N_CLASSES, widths=(6,), activation="tanh")
ATTACK = PGD(0.1, n_steps=2)


def fresh_model(seed=0, network=NETWORK):
    return Model(network, network.init(jax.random.key(seed), (N_FEATURES,)))


def data(n=N):
    rng = np.random.default_rng(3)
    X = rng.uniform(size=(n, N_FEATURES)).astype(np.float32)
    return X, (X @ rng.normal(size=(N_FEATURES, N_CLASSES))).argmax(1)


def run(start=None, X_y=None, **options):
    """All states that training yields."""
    X, y = data() if X_y is None else X_y
    defaults = {"key": KEY, "optimizer": SGD, "batch_size": BATCH, "attacks": (ATTACK,)}
    return list(train(fresh_model() if start is None else start, X, y, **defaults | options))


def row_of(x, X):
    return int(np.abs(X - x).max(1).argmin())


def weights(state):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.model.variables.params)])


def assert_same_bits(first, second):
    """Two states agree in every array."""
    states = (replace(s, key=jax.random.key_data(s.key)) for s in (first, second))
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(params=[True, False], ids=["compiled loop", "Python loop"])
def loop(request, monkeypatch):
    force_loop(monkeypatch, request.param)
    return request.param


def force_loop(monkeypatch, fused):
    monkeypatch.setattr("ntkrobust_sk.execution.loops.prefers_compiled_loop", lambda *_, **__: fused)


# A plain reimplementation


class Recorder:
    """An attack that notes what it was called with."""

    def __init__(self, attack):
        self.attack, self.calls = attack, []

    def __call__(self, model, x, y, *, key):
        self.calls.append((np.asarray(x), np.asarray(y), key, model))
        return self.attack(model, x, y, key=key)


def recorded_batches(monkeypatch, attacks, epochs, X_y, **options):
    """For each batch the real rows (not those that fill it up) and the key of each attack."""
    recorders = [Recorder(attack) for attack in attacks]
    with monkeypatch.context() as patch:
        force_loop(patch, False)
        run(X_y=X_y, attacks=tuple(recorders), epochs=epochs, **options)
    n = len(X_y[0])
    per_epoch = -(-n // BATCH)
    batches, first = [], int(getattr(options.get("start"), "step", 0))
    for step, calls in enumerate(zip(*(recorder.calls for recorder in recorders), strict=True), first):
        real = BATCH if (step + 1) % per_epoch else n - BATCH * (per_epoch - 1)
        batches.append((calls[0][0][:real], calls[0][1][:real], [call[2] for call in calls]))
    return batches


def assert_same_batches(found, expected):
    """The same rows, labels and keys, batch by batch."""
    assert len(found) == len(expected) > 0
    for (x, y, keys), (x0, y0, keys0) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, x0)
        np.testing.assert_array_equal(y, y0)
        np.testing.assert_array_equal(*(np.stack(list(map(jax.random.key_data, k))) for k in (keys, keys0)))


def losses_by_hand(scores, y):
    if y.ndim == 2:
        return ((scores - y) ** 2).sum(1)
    return jax.nn.logsumexp(scores, axis=1) - scores[jnp.arange(len(y)), y]


def sgd_by_hand(apply, params, batches, attacks, as_model, weight=lambda x: jnp.ones(len(x))):
    """Momentum written out, one update for each batch and attack; the attack sees the parameters of the moment."""
    velocity = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def gradient(params, x, y, w):
        return jax.grad(lambda params: (w * losses_by_hand(apply(params, x), y)).sum() / len(x))(params)

    for x, y, keys in batches:
        for attack, key in zip(attacks, keys, strict=True):
            keys_of_rows = jnp.stack([jax.random.fold_in(key, i) for i in range(len(x))])
            x_adv = attack(as_model(params), jnp.asarray(x), jnp.asarray(y), key=keys_of_rows)
            g = gradient(params, x_adv, y, weight(x))
            velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, g)
            params = jax.tree.map(lambda p, v: p - RATE * v, params, velocity)
    return params


def mlp_by_hand(params, x):
    hidden = jnp.tanh(x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"])
    return hidden @ params["dense_1"]["kernel"] + params["dense_1"]["bias"]


def assert_close(params, expected, **tolerance):
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 0, "atol": 1e-5} | tolerance)


REGIMES = {"benign": (Clean(),), "Madry": (ATTACK,), "clean and adversarial": (Clean(), ATTACK)}
TEN_STEPS = 10 / 3


@pytest.mark.slow
@pytest.mark.parametrize("regime", REGIMES)
def test_ten_steps_are_those_of_the_plain_algorithm(regime, loop, monkeypatch):
    attacks, model = REGIMES[regime], fresh_model()
    batches = recorded_batches(monkeypatch, attacks, [TEN_STEPS], data())
    assert len(batches) == 10 and {len(x) for x, _, _ in batches} == {8, 6}
    state = run(attacks=attacks, epochs=[TEN_STEPS])[-1]
    expected = sgd_by_hand(
        mlp_by_hand, model.variables.params, batches, attacks, lambda params: Model(NETWORK, Variables(params))
    )
    assert_close(state.model.variables.params, expected)
    assert np.abs(weights(state) - weights(run(epochs=[0])[0])).max() > 0.1


@pytest.mark.slow
def test_the_adversarial_update_sees_the_network_that_the_clean_one_left(monkeypatch):
    force_loop(monkeypatch, False)
    recorders = Recorder(Clean()), Recorder(ATTACK)
    states = run(attacks=recorders, epochs=[0, 1 / 3, 2 / 3])
    clean_only = run(attacks=(Clean(),), epochs=[1 / 3])
    before, after = (recorder.calls[0][3] for recorder in recorders)
    assert_close(before.variables.params, states[0].model.variables.params, atol=0)
    assert_close(after.variables.params, clean_only[0].model.variables.params, atol=0)
    assert_close(recorders[0].calls[1][3].variables.params, states[1].model.variables.params, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("centered", [False, True])
def test_linearised_dynamics_are_those_of_the_plain_algorithm_in_terms_of_the_displacement(centered, monkeypatch):
    """θ itself trains there, on f(x; θ_t) + J(x)(θ − θ_t) with the Jacobian J written out."""
    attacks, anchor = (Clean(), ATTACK), fresh_model().variables.params
    start = linearize(fresh_model(), centered=centered)

    def apply(theta, x):
        jacobian = jax.jacobian(mlp_by_hand)(anchor, x)
        terms = jax.tree.map(
            lambda J, a, b: J.reshape(*J.shape[:2], -1) @ (a - b).ravel(), jacobian, theta, anchor
        )
        return sum(jax.tree.leaves(terms)) + (0 if centered else mlp_by_hand(anchor, x))

    def as_model(theta):
        displacement = jax.tree.map(jnp.subtract, theta, anchor)
        return Model(Linearized(NETWORK, centered), Variables(displacement, Variables(anchor)))

    X_y = data(3 * BATCH)
    batches = recorded_batches(monkeypatch, attacks, [TEN_STEPS], X_y, start=start)
    state = run(start, X_y, attacks=attacks, epochs=[TEN_STEPS])[-1]
    theta = sgd_by_hand(apply, anchor, batches, attacks, as_model)
    assert_close(state.model.variables.params, jax.tree.map(jnp.subtract, theta, anchor))
    assert_close(state.model.variables.state.params, anchor, atol=0)


@pytest.mark.slow
def test_real_targets_are_fitted_by_squared_error(loop, monkeypatch):
    X, y = data()
    targets = np.eye(N_CLASSES, dtype=np.float32)[y]
    batches = recorded_batches(monkeypatch, (Clean(),), 2, (X, targets))
    state = run(X_y=(X, targets), attacks=(Clean(),), epochs=2)[-1]
    expected = sgd_by_hand(mlp_by_hand, fresh_model().variables.params, batches, (Clean(),), lambda params: None)
    assert_close(state.model.variables.params, expected)


@pytest.mark.slow
def test_float64_trains_in_float64(monkeypatch):
    with enable_x64(True):
        model = fresh_model()
        batches = recorded_batches(monkeypatch, (Clean(),), [2 / 3], data())
        state = run(attacks=(Clean(),), epochs=[2 / 3])[-1]
        assert weights(state).dtype == np.float64
        expected = sgd_by_hand(mlp_by_hand, model.variables.params, batches, (Clean(),), lambda params: None)
        assert_close(state.model.variables.params, expected, atol=1e-13)


# Batches


@pytest.mark.slow
def test_an_epoch_is_a_permutation_of_the_data_in_an_order_of_its_own(monkeypatch):
    X, y = data()
    batches = recorded_batches(monkeypatch, (Clean(),), 2, (X, y))
    epochs = [np.concatenate([x for x, _, _ in batches[i : i + 3]]) for i in (0, 3)]
    orders = [[row_of(x, X) for x in epoch] for epoch in epochs]
    assert [sorted(order) for order in orders] == [list(range(N))] * 2
    assert orders[0] != orders[1] != list(range(N))
    np.testing.assert_array_equal(np.concatenate([y for _, y, _ in batches]), y[np.concatenate(orders)])


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 4 / 3, 5 / 3, 2])
def test_the_same_seed_gives_the_same_batches_and_a_run_that_goes_on_in_an_epoch_those_that_are_left(
    stop, monkeypatch
):
    X_y, attacks, step = data(), (Clean(), ATTACK), round(3 * stop)
    whole = recorded_batches(monkeypatch, attacks, 3, X_y)
    assert_same_batches(recorded_batches(monkeypatch, attacks, 3, X_y), whole)
    stopped = run(epochs=[stop], X_y=X_y, attacks=attacks)[-1]
    assert int(stopped.step) == step
    assert_same_batches(recorded_batches(monkeypatch, attacks, 3, X_y, start=stopped, key=None), whole[step:])
    other = recorded_batches(monkeypatch, attacks, 3, X_y, key=jax.random.key(5))
    assert not np.array_equal(other[0][0], whole[0][0])


def test_every_batch_and_attack_has_noise_of_its_own(monkeypatch):
    batches = recorded_batches(monkeypatch, (ATTACK, ATTACK), 2, data())
    keys = [tuple(jax.random.key_data(key).tolist()) for _, _, keys in batches for key in keys]
    assert len(set(keys)) == len(keys) == 12


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [5, 1000])
def test_one_epoch_is_one_pass_whatever_the_batch_size(batch_size):
    assert int(run(batch_size=batch_size, epochs=1)[0].step) == -(-N // batch_size)


def test_integer_weights_count_like_repetitions(loop):
    X, y = data()
    repetitions = np.arange(N) % 4
    options = {"attacks": (Clean(),), "epochs": 4, "batch_size": 64}
    weighted = run(sample_weight=repetitions, **options)[-1]
    repeated = run(X_y=(np.repeat(X, repetitions, 0), np.repeat(y, repetitions)), **options)[-1]
    np.testing.assert_allclose(weights(weighted), weights(repeated), atol=2e-6)
    assert np.abs(weights(weighted) - weights(run(**options)[-1])).max() > 1e-2


@pytest.mark.slow
def test_weights_in_batches_are_those_of_the_plain_algorithm(loop, monkeypatch):
    X, y = data()
    sample_weight = np.linspace(0, 3, N)
    batches = recorded_batches(monkeypatch, (Clean(),), 2, (X, y))

    def weight(x):
        rows = [row_of(row, X) for row in x]
        return jnp.asarray(sample_weight[rows] / sample_weight.mean(), jnp.float32)

    expected = sgd_by_hand(
        mlp_by_hand, fresh_model().variables.params, batches, (Clean(),), lambda params: None, weight
    )
    state = run(attacks=(Clean(),), epochs=2, sample_weight=sample_weight)[-1]
    assert_close(state.model.variables.params, expected)


@pytest.mark.parametrize("scale", [1e-6, 7.0])
def test_only_the_ratio_of_weights_counts(scale):
    sample_weight = np.arange(1.0, N + 1)
    states = [run(sample_weight=w, epochs=1)[0] for w in (sample_weight, scale * sample_weight)]
    np.testing.assert_allclose(*map(weights, states), atol=1e-6)


# To the bit


def test_the_same_seed_gives_the_same_weights_to_the_bit(loop):
    first, second = (run(attacks=(Clean(), ATTACK), epochs=2)[-1] for _ in range(2))
    assert_same_bits(first, second)


@pytest.mark.slow
def test_another_seed_gives_another_order_and_other_noise(loop):
    whole = {"batch_size": 64, "epochs": 1}
    first, second = (weights(run(key=jax.random.key(seed), **whole)[-1]) for seed in (0, 1))
    assert np.abs(first - second).max() > 1e-6
    benign = [weights(run(key=jax.random.key(seed), attacks=(Clean(),), epochs=1)[-1]) for seed in (0, 1)]
    assert np.abs(benign[0] - benign[1]).max() > 1e-6


def test_both_loops_give_the_same_weights(monkeypatch):
    results = []
    for fused in (True, False):
        force_loop(monkeypatch, fused)
        results.append(weights(run(attacks=(Clean(), ATTACK), epochs=3)[-1]))
    np.testing.assert_allclose(*results, atol=1e-5)


@pytest.mark.parametrize("stop", [0, 1, 1 / 3, 1.5, 2])
def test_resuming_equals_an_uninterrupted_run_to_the_bit(stop, loop):
    regime = {"attacks": (Clean(), ATTACK)}
    whole = run(epochs=3, **regime)[-1]
    stopped = run(epochs=[stop], **regime)[-1]
    assert int(stopped.step) == round(3 * stop)
    assert_same_bits(run(stopped, key=None, epochs=3, **regime)[-1], whole)


def test_when_states_are_yielded_does_not_change_them(loop):
    often, once = run(epochs=[1 / 3, 1, 1.4, 2]), run(epochs=2)
    assert_same_bits(often[-1], once[-1])
    assert_same_bits(often[1], once[0])


# When to yield


def test_fractional_epochs_yield_at_the_nearest_batch():
    epochs = [0, 0.125, 0.34, 0.5, 2 / 3, 1, 1.5, 2.4]
    states = run(attacks=(Clean(),), epochs=epochs, X_y=data(16 * BATCH))
    assert [int(state.step) for state in states] == [0, 2, 5, 8, 11, 16, 24, 38]


def test_whole_epochs_yield_once_each():
    for epochs in (3, np.int64(3), [1, 2, 3]):
        assert [int(state.step) for state in run(epochs=epochs)] == [3, 6, 9]
    assert run(epochs=0) == []


def test_epochs_that_never_end_can_be_left_at_any_time():
    X, y = data()
    states = train(fresh_model(), X, y, key=KEY, optimizer=SGD, epochs=itertools.count(1), batch_size=BATCH)
    assert [int(state.step) for state in itertools.islice(states, 3)] == [3, 6, 9]


def test_a_resumed_run_yields_from_where_it_stands():
    state = run(epochs=2)[-1]
    assert [int(s.step) for s in run(state, key=None, epochs=4)] == [6, 9, 12]


def test_switching_to_another_attack_half_way_is_a_second_call():
    half = run(attacks=(Clean(),), epochs=1)[-1]
    flipped = run(half, key=None, attacks=(ATTACK,), epochs=2)[-1]
    assert int(flipped.step) == 6
    assert np.abs(weights(flipped) - weights(run(attacks=(Clean(),), epochs=2)[-1])).max() > 1e-4


# Statistics that batches leave behind


@dataclass(frozen=True)
class Normalised:
    """A dense layer behind batch norm; its state counts the rows and batches that it was trained on."""

    def init(self, key, input_shape):
        params = {"kernel": jax.random.normal(key, (*input_shape, N_CLASSES))}
        return Variables(params, {"mean": jnp.zeros(input_shape), "rows": jnp.zeros(()), "batches": jnp.zeros(())})

    def apply(self, params, state, x, *, train=False):
        mean = x.mean(0) if train else state["mean"]
        if train:
            average = 0.9 * state["mean"] + 0.1 * mean
            state = {"mean": average, "rows": state["rows"] + len(x), "batches": state["batches"] + 1}
        return (x - mean) @ params["kernel"], state


@pytest.mark.slow
def test_batch_statistics_see_every_row_once_an_epoch_and_no_padding(loop, monkeypatch):
    network = Normalised()
    state = run(fresh_model(network=network), attacks=(Clean(),), epochs=2)[-1]
    seen = state.model.variables.state
    assert int(seen["rows"]) == 2 * N and int(seen["batches"]) == 6
    mean = np.zeros(N_FEATURES)
    recorder = Recorder(Clean())
    with monkeypatch.context() as patch:
        force_loop(patch, False)
        run(fresh_model(network=network), attacks=(recorder,), epochs=2)
    assert [len(x) for x, *_ in recorder.calls] == [8, 8, 6] * 2
    for x, *_ in recorder.calls:
        mean = 0.9 * mean + 0.1 * x.mean(0)
    np.testing.assert_allclose(seen["mean"], mean, atol=1e-6)


@pytest.mark.slow
def test_both_updates_of_a_batch_move_the_statistics(loop):
    state = run(fresh_model(network=Normalised()), attacks=(Clean(), ATTACK), epochs=1)[-1]
    assert int(state.model.variables.state["batches"]) == 6


@pytest.mark.slow
def test_frozen_statistics_stay_and_are_used(loop):
    model = fresh_model(network=Normalised())
    moved = Model(model.network, Variables(model.variables.params, {**model.variables.state, "mean": jnp.ones(4)}))
    state = run(moved, attacks=(Clean(), ATTACK), epochs=2, freeze_state=True)[-1]
    jax.tree.map(np.testing.assert_array_equal, state.model.variables.state, moved.variables.state)
    moving = run(moved, attacks=(Clean(), ATTACK), epochs=2)[-1]
    assert np.abs(weights(state) - np.ravel(moved.variables.params["kernel"])).max() > 1e-3
    assert np.abs(weights(state) - weights(moving)).max() > 1e-3


@pytest.mark.slow
def test_the_anchor_of_a_linearised_network_with_statistics_does_not_move(loop):
    trained = run(fresh_model(network=Normalised()), attacks=(Clean(),), epochs=1)[-1].model
    state = run(linearize(trained), attacks=(Clean(),), epochs=1)[-1]
    jax.tree.map(np.testing.assert_array_equal, state.model.variables.state, trained.variables)


# Failing loudly


def diverged(**options):
    with pytest.raises(TrainingDivergedError) as caught:
        run(**options)
    return caught.value


def blind_beyond_one(params, x):
    return NETWORK.apply(params, (), x)[0] + jnp.where(x[:, :1] > 1.5, jnp.nan, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attacks", [(Clean(),), (Clean(), PGD(0.1, n_steps=2, bounds=None))], ids=["benign", "adversarial"]
)
def test_divergence_is_raised_at_its_batch_with_the_state_before_it(attacks, loop):
    """The logits of one row are not finite, so training has to stop at the batch that holds it."""
    X, y = data()
    bad_row = 5
    X[bad_row] = 2.0
    start = Model(Stateless(blind_beyond_one), fresh_model().variables)
    seed = jax.random.key_data(KEY).tolist()
    order = np.random.default_rng([*seed, 0]).permutation(N)
    batch = int(np.flatnonzero(order == bad_row)[0]) // BATCH
    error = diverged(start=start, X_y=(X, y), attacks=attacks, epochs=5)
    assert (error.epoch, error.step) == (0, batch)
    assert "in epoch 0" in str(error) and f"at batch {batch}" in str(error) and "learning rate" in str(error)
    before = run(start=start, X_y=(X, y), attacks=attacks, epochs=[batch / 3])[-1]
    assert_same_bits(error.state, before)
    assert np.isfinite(weights(error.state)).all()


def test_divergence_in_a_later_epoch_names_it_and_keeps_the_last_finite_state(loop):
    explosive = optax.sgd(lambda step: jnp.where(step < 20, 0.1, 1e38))
    options = {"optimizer": explosive, "attacks": (Clean(),)}
    error = diverged(epochs=100, **options)
    assert error.step >= 20 and error.epoch == error.step // 3
    steps = [s / 3 for s in range(error.step + 1)]
    assert_same_bits(error.state, run(epochs=steps, **options)[-1])
    assert int(error.state.step) == error.step and np.isfinite(weights(error.state)).all()


@pytest.mark.slow
def test_the_state_before_a_divergence_can_go_on_with_another_optimiser():
    explosive = optax.sgd(lambda step: jnp.where(step < 5, 0.1, jnp.inf))
    error = diverged(optimizer=explosive, epochs=10)
    calm = optax.sgd(lambda step: 0.1 + 0 * step)
    state = run(error.state, key=None, optimizer=calm, epochs=10)[-1]
    assert int(state.step) == 30 and np.isfinite(weights(state)).all()


def test_an_update_that_only_the_attack_makes_infinite_is_not_made(loop):
    class Explosive:
        def __call__(self, model, x, y, *, key):
            return x * jnp.inf

    error = diverged(attacks=(Clean(), Explosive()), epochs=1)
    assert error.step == 0
    clean = run(attacks=(Clean(),), epochs=[1 / 3])[0]
    np.testing.assert_array_equal(weights(error.state), weights(clean))


def first(**options):
    return run(**{"epochs": 1} | options)


def test_data_without_rows_or_of_two_lengths_is_refused():
    X, y = data()
    for X_y, lengths in (((X[:0], y[:0]), "0 and 0"), ((X[:5], y), f"5 and {N}"), ((X, y[:3]), f"{N} and 3")):
        with pytest.raises(ValueError, match=f"the same, positive number of rows, got {lengths}"):
            first(X_y=X_y)


def test_a_model_without_a_key_and_a_batch_without_rows_are_refused():
    with pytest.raises(ValueError, match=r"train needs a key to start from a model: key=jax.random.key\(seed\)"):
        first(key=None)
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got 0"):
        first(batch_size=0)


def test_no_attack_at_all_is_refused():
    with pytest.raises(ValueError, match=r"attacks is empty.*attacks=\(Clean\(\),\) is benign"):
        first(attacks=())


@pytest.mark.parametrize("shift", [-1, 1])
def test_labels_that_the_network_has_no_logit_for_are_refused(shift):
    X, y = data()
    with pytest.raises(ValueError, match=r"labels must lie in 0..2, one for each logit"):
        first(X_y=(X, y + shift))


def test_targets_that_do_not_fit_the_network_are_refused():
    X, _ = data()
    with pytest.raises(
        ValueError, match=r"real targets must be shaped like the scores, \(\d+, 3\), got \(\d+, 2\)"
    ):
        first(X_y=(X, np.zeros((N, 2), np.float32)))


def test_inputs_outside_of_an_attacks_bounds_are_refused():
    X, y = data()
    with pytest.raises(ValueError, match=r"the attack's bounds are \(0.0, 1.0\), but X ranges"):
        first(X_y=(X + 1, y))
    first(X_y=(X + 1, y), attacks=(Clean(),))


@pytest.mark.parametrize(
    "sample_weight",
    [np.ones(N - 1), np.ones(N + 1), np.zeros(N), -np.ones(N), np.full(N, np.nan), np.full(N, np.inf), 1.0],
    ids=["short", "long", "zero", "negative", "nan", "infinite", "scalar"],
)
def test_weights_that_weigh_nothing_are_refused(sample_weight):
    with pytest.raises(ValueError, match="sample_weight must"):
        first(sample_weight=sample_weight)


# Compiled once


class CountingNetwork:
    """A network that counts how often its training mode is traced."""

    def __init__(self):
        self.traces = 0

    def init(self, key, input_shape):
        return NETWORK.init(key, input_shape)

    def apply(self, params, state, x, *, train=False):
        self.traces += train
        return NETWORK.apply(params, state, x)


@pytest.mark.slow
def test_neither_epochs_nor_ragged_ends_nor_new_weights_compile_again(loop):
    network = CountingNetwork()
    run(fresh_model(network=network), epochs=[1 / 3])
    before = network.traces
    assert before > 0
    train_in_many_ways(network)
    assert network.traces == before


def train_in_many_ways(network, **options):
    state = run(fresh_model(network=network), epochs=7, **options)[-1]
    run(state, key=None, epochs=[7.4, 8, 20], **options)
    run(fresh_model(seed=9, network=network), key=jax.random.key(4), epochs=2, X_y=data(N + 3), **options)
    run(fresh_model(network=network), epochs=1, sample_weight=np.arange(N), **options)


@pytest.mark.parametrize("network, loops", [(NETWORK, 1), (Normalised(), 2)], ids=["padded", "ragged"])
def test_the_compiled_loop_is_compiled_once_for_all_lengths_and_once_more_for_ragged_batches(
    network, loops, monkeypatch
):
    """What is counted is how often the attack is called, which in a compiled loop is when that is traced."""

    class Counting:
        calls = 0

        def __call__(self, model, x, y, *, key):
            self.calls += 1
            return x

    force_loop(monkeypatch, True)
    attack = Counting()
    run(fresh_model(network=network), attacks=(attack,), epochs=1)
    before = attack.calls
    run(fresh_model(network=network), attacks=(attack,), epochs=[1 / 3, 1, 2, 10.2])
    run(fresh_model(seed=9, network=network), attacks=(attack,), epochs=20)
    assert attack.calls == before and before % loops == 0


@pytest.mark.parametrize("seconds, chunks", [(0.1, [1, 4, 16, 16, 3]), (5.0, [1] * 40)], ids=["quick", "slow"])
def test_chunks_grow_while_they_are_quick(seconds, chunks, monkeypatch):
    """Ctrl-C is heard between two of them."""
    clock, taken, take = itertools.count(0, seconds), [], training_module.repeat

    def counting(step, n_steps, *args, **options):
        taken.append(n_steps)
        return take(step, n_steps, *args, **options)

    monkeypatch.setattr(training_module, "monotonic", lambda: next(clock))
    monkeypatch.setattr(training_module, "repeat", counting)
    run(fresh_model(), attacks=(Clean(),), epochs=[sum(chunks) / 3])
    assert taken == chunks


def test_statistics_need_one_more_compilation_for_the_ragged_batch_alone(loop):
    @dataclass(frozen=True)
    class Counting(Normalised):
        def apply(self, params, state, x, *, train=False):
            if train:
                traces.append(x.shape)
            return super().apply(params, state, x, train=train)

    traces = []
    run(fresh_model(network=Counting()), attacks=(Clean(),), epochs=1)
    before = len(traces)
    assert {shape[0] for shape in traces} == {8, 6}
    run(fresh_model(network=Counting()), attacks=(Clean(),), epochs=[1 / 3, 1, 2, 10.2])
    assert len(traces) == before


def test_a_batch_never_waits_for_the_host(loop):
    """Under tracing there are no values, so whatever looked at one would raise."""
    state = initial_state(fresh_model(), KEY, SGD)
    X, y = data(2 * BATCH)
    batches = (X.reshape(2, BATCH, -1), y.reshape(2, BATCH), np.ones((2, BATCH), np.float32))
    static = (Step(SGD, attacks=(Clean(), ATTACK)),)

    def two(state, batches):
        options = {"static": static, "schedule": lambda length: Batch(*batches)}
        return repeat(batch_step, 2, state, evaluated=(state.model, X[:1]), **options)

    traced = jax.eval_shape(two, state, batches)
    assert traced.step.shape == ()


# What training is for


def digits():
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    return (X[:500], y[:500]), (X[500:700], y[500:700])


@pytest.mark.slow
def test_training_lowers_the_loss_and_adversarial_training_makes_robust():
    train_set, (X_test, y_test) = digits()
    network, attack = MLP(n_outputs=10, widths=(32,)), PGD(0.1, n_steps=5)
    start = Model(network, network.init(KEY, (64,)))
    clean, robust = {}, {}
    for regime, attacks in {"benign": (Clean(),), "adversarial": (Clean(), attack)}.items():
        options = {"attacks": attacks, "epochs": 20, "batch_size": 64, "optimizer": optax.sgd(0.05, momentum=0.9)}
        states = run(start, train_set, **options)
        assert states[-1].loss < 0.3 * states[0].loss
        model = states[-1].model
        X_adv = attack_in_tiles(PGD(0.1, n_steps=20), model, X_test, y_test, key=KEY, rows=200)
        clean[regime], robust[regime] = (float((model(X).argmax(1) == y_test).mean()) for X in (X_test, X_adv))
    assert min(clean.values()) > 0.8
    assert robust["adversarial"] > robust["benign"] + 0.1


@dataclass(frozen=True)
class RowsSeen:
    """An attack of a user's own, without a key for each example, that notes how many rows it is given."""

    rows: tuple

    def __call__(self, model, x, y, *, key):
        seen.append(len(x))
        return x


seen = []


@pytest.mark.slow
def test_rows_of_a_batch_taken_by_pieces_give_the_same_update_and_attacks(monkeypatch):
    network = CNN(n_outputs=3, widths=(4, 4), strides=(1, 2))
    start = Model(network, network.init(KEY, (8, 8, 1)))
    x, y = np.random.default_rng(0).uniform(size=(24, 8, 8, 1)).astype(np.float32), np.arange(24) % 3
    found = []
    for rows in (12, 4):
        monkeypatch.setattr(step_module, "rows_in_cache", lambda model, x, rows=rows: rows)
        attacks = (Clean(), PGD(0.1, n_steps=2), RowsSeen((rows,)))
        options = {"attacks": attacks, "batch_size": 12, "epochs": 2, "sample_weight": np.arange(1.0, 25)}
        found.append(weights(run(start, (x, y), **options)[-1]))
    assert set(seen) == {12}
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class OnlyInTraining:
    """A network without a state whose gradient is zero in evaluation mode."""

    n_outputs: int = 3

    def init(self, key, input_shape):
        return Variables(jax.random.normal(key, (np.prod(input_shape), self.n_outputs)))

    def apply(self, params, state, x, *, train=False):
        return x.reshape(len(x), -1) @ (params if train else jax.lax.stop_gradient(params)), state


@pytest.mark.parametrize("freeze_state", [False, True])
def test_pieces_are_learned_from_in_the_mode_of_training(monkeypatch, freeze_state):
    network = OnlyInTraining()
    start = Model(network, network.init(KEY, (N_FEATURES,)))
    monkeypatch.setattr(step_module, "rows_in_cache", lambda model, x: 4)
    (state,) = run(start, attacks=(Clean(),), freeze_state=freeze_state, epochs=1)
    assert (weights(state) == np.ravel(start.variables.params)).all() == freeze_state


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_pieces_of_networks_in_half_precision_add_up(monkeypatch, dtype):
    half = jax.tree.map(lambda leaf: leaf.astype(dtype), fresh_model().variables.params)
    found = []
    for rows in (4, 8):
        monkeypatch.setattr(step_module, "rows_in_cache", lambda model, x, rows=rows: rows)
        options = {"attacks": (Clean(), PGD(0.1, n_steps=rows)), "batch_size": 8}
        found.append(weights(run(Model(NETWORK, Variables(half)), **options)[-1]).astype(float))
    assert found[0].shape == found[1].shape and np.isfinite(found).all()


@pytest.mark.slow
def test_batch_statistics_see_the_whole_batch(monkeypatch):
    asked = []
    monkeypatch.setattr(step_module, "rows_in_cache", lambda model, x: asked.append(len(x)) or len(x))
    network = ResNet18(n_outputs=3, width=2)
    start = Model(network, network.init(KEY, (8, 8, 1)))
    x, y = np.random.default_rng(0).uniform(size=(8, 8, 8, 1)).astype(np.float32), np.arange(8) % 3
    run(start, (x, y), attacks=(Clean(),), epochs=1)
    assert not asked
    run(start, (x, y), attacks=(Clean(),), epochs=1, freeze_state=True)
    assert asked
