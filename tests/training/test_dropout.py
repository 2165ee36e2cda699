"""Networks that are random in training: a key for each update, none in evaluation."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntkrobust_sk import (
    AWP,
    PGD,
    AdversarialKernelTrainer,
    MixedPrecision,
    Model,
    Normalized,
    Variables,
    from_equinox,
    from_flax,
    from_haiku,
    linearize,
    train,
)
from ntkrobust_sk.networks.wrappers import takes_key

KEY, N, D = jax.random.key(0), 8, 6
X = np.random.default_rng(0).uniform(size=(N, D)).astype(np.float32)
Y = np.arange(N) % 2


@dataclass(frozen=True)
class Dropped:
    """A linear network whose inputs are dropped by halves in training."""

    n_outputs: int = 2

    def init(self, key, input_shape):
        return Variables(jax.random.normal(key, (*input_shape, self.n_outputs)))

    def apply(self, params, state, x, *, train=False, key=None):
        if train:
            x = jnp.where(jax.random.bernoulli(key, shape=x.shape), 2 * x, 0)
        return x @ params, state


def own():
    return Model(Dropped(), Dropped().init(KEY, (D,)))


def linen():
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))

    network = from_flax(Net())
    return Model(network, network.init(KEY, (D,)))


def haiku():
    hk = pytest.importorskip("haiku")

    def net(x, is_training):
        x = hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x
        return hk.Linear(2)(x)

    network = from_haiku(hk.transform(net))
    return Model(network, network.init(KEY, (D,)))


def equinox():
    eqx = pytest.importorskip("equinox")
    return from_equinox(eqx.nn.Sequential([eqx.nn.Dropout(0.5), eqx.nn.Linear(D, 2, key=KEY)]))


MODELS = [own, haiku, linen, equinox]


def gradients(model, key=KEY, network=None):
    """What one step of size one subtracts."""
    model = model if network is None else Model(network(model.network), model.variables)
    (state,) = train(model, X, Y, key=key, optimizer=optax.sgd(1.0))
    before, after = (jax.tree.leaves(m.variables.params) for m in (model, state.model))
    return np.concatenate([np.ravel(a - b) for a, b in zip(after, before, strict=True)])


@pytest.mark.parametrize("make", MODELS)
def test_dropout_is_drawn_in_training_seeded_and_off_in_evaluation(make):
    model = make()
    assert takes_key(model.network)
    np.testing.assert_array_equal(model(X), model(X))
    first, again, other = (gradients(model, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-4)


def test_each_update_has_a_key_of_its_own():
    seen = []

    class Noting(Dropped):
        def apply(self, params, state, x, *, train=False, key=None):
            if train:
                jax.debug.callback(lambda k: seen.append(tuple(np.asarray(k).tolist())), jax.random.key_data(key))
            return super().apply(params, state, x, train=train, key=key)

    model = Model(Noting(), own().variables)
    attacks = (PGD(0.1, n_steps=2), PGD(0.1, n_steps=2))
    list(train(model, X, Y, key=KEY, optimizer=optax.sgd(0.1), attacks=attacks, epochs=3, batch_size=4))
    jax.effects_barrier()
    assert len(set(seen)) == len(seen) == 3 * 2 * 2


@pytest.mark.parametrize("wrap", [MixedPrecision, lambda net: Normalized(net, (0.5,), (0.25,))])
def test_wrappers_pass_the_key_on_to_networks_that_take_one(wrap):
    model = own()
    assert takes_key(wrap(model.network))
    first, other = (gradients(model, jax.random.key(seed), wrap) for seed in (1, 2))
    assert not np.allclose(first, other, atol=1e-4)


def test_a_frozen_or_linearised_network_is_trained_without_dropout():
    start, lin = own(), linearize(own())
    for model, options in ((start, {"freeze_state": True}), (lin, {})):
        found = []
        for seed in (1, 2):
            (state,) = train(model, X, Y, key=jax.random.key(seed), optimizer=optax.sgd(1.0), **options)
            found.append(
                np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.model.variables.params)])
            )
        np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


def test_the_estimator_trains_networks_with_dropout_and_answers_alike_each_time():
    options = {"attack": PGD(0.05, n_steps=2), "weight_perturbation": AWP(), "max_epochs": 2, "random_state": 0}
    trainer = AdversarialKernelTrainer(Dropped(), **options).fit(X, Y)
    np.testing.assert_array_equal(trainer.decision_function(X), trainer.decision_function(X))
    again = AdversarialKernelTrainer(Dropped(), **options).fit(X, Y)
    np.testing.assert_array_equal(trainer.decision_function(X), again.decision_function(X))
