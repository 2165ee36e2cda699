"""Losses in training: their formulas in NumPy, gradients by finite differences, and what their attacks climb."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from ntkrobust_sk import (
    AWP,
    FGSM,
    MART,
    MLP,
    NFGSM,
    PGD,
    TRADES,
    AdversarialTraining,
    Clean,
    Model,
    TrainingDivergedError,
    train,
)
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.training.objectives import Divergence

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
NETWORK = MLP(n_outputs=3, widths=(5,), activation="tanh")
X = RNG.uniform(0.2, 0.8, size=(6, 4))
Y = np.arange(6) % 3


def p_of(scores):
    return scipy.special.softmax(scores, axis=1)


def kl(p, q):
    return (p * np.log(p / q)).sum(1)


def trades_by_hand(clean, adversarial, y, beta):
    p, q = p_of(clean), p_of(adversarial)
    return -np.log(p[np.arange(len(y)), y]) + beta * kl(p, q)


def mart_by_hand(clean, adversarial, y, beta):
    """As the paper has it, in probabilities."""
    p, q, rows = p_of(clean), p_of(adversarial), np.arange(len(y))
    others = q.copy()
    others[rows, y] = -1
    bce = -np.log(q[rows, y]) - np.log(1 - others.max(1))
    return bce + beta * kl(p, q) * (1 - p[rows, y])


CASES = [(TRADES, trades_by_hand), (MART, mart_by_hand)]


@pytest.mark.parametrize("loss, by_hand", CASES)
@pytest.mark.parametrize("beta", [0.0, 2.5])
def test_losses_are_their_formulas(loss, by_hand, beta):
    clean, adversarial = RNG.normal(size=(2, 20, 5)) * 3
    y = RNG.integers(5, size=20)
    with enable_x64():
        found = loss(beta)(jnp.asarray(clean), jnp.asarray(adversarial), jnp.asarray(y))
    np.testing.assert_allclose(found, by_hand(clean, adversarial, y, beta), rtol=1e-10)


@pytest.mark.parametrize("loss, by_hand", CASES)
def test_one_column_of_scores_is_that_of_label_1_against_label_0(loss, by_hand):
    clean, adversarial = RNG.normal(size=(2, 8, 1))
    y, zero = np.arange(8) % 2, np.zeros((8, 1))
    found = loss()(*(jnp.asarray(part, jnp.float32) for part in (clean, adversarial)), jnp.asarray(y))
    both = [np.concatenate([zero, part], 1) for part in (clean, adversarial)]
    np.testing.assert_allclose(found, by_hand(*both, y, loss().beta), rtol=1e-4)


@pytest.mark.parametrize("loss", [TRADES(), MART()])
def test_losses_stay_finite_where_probabilities_round_to_one(loss):
    sure = jnp.array([[200.0, 0.0, -100.0]])
    for clean, adversarial in ((sure, sure), (sure, -sure), (-sure, sure)):
        value, gradient = jax.value_and_grad(lambda s, c=clean: loss(c, s, jnp.array([0])).sum())(adversarial)
        assert np.isfinite(value) and np.isfinite(gradient).all()


@jax.jit
def scores(params, x):
    return NETWORK.apply(params, (), x)[0]


class Fixed:
    """An attack that moves each input by the same step."""

    def __call__(self, model, x, y, *, key):
        return x + 0.1


def weights_after(start, loss, awp=None, rate=0.1, attack=None):
    options = {"optimizer": optax.sgd(rate), "attacks": (attack or Fixed(),), "batch_size": 8}
    (state,) = train(start, X, Y, key=KEY, loss=loss, weight_perturbation=awp, **options)
    return state


def flat(params):
    return jax.flatten_util.ravel_pytree(params)


@pytest.mark.parametrize("awp", [None, 0.3])
@pytest.mark.parametrize("loss, by_hand", CASES)
def test_an_update_is_the_gradient_of_the_formula_by_finite_differences(loss, by_hand, awp):
    """Through both passes, and at weights that are moved layer by layer where weights are perturbed."""
    with enable_x64():
        start = Model(NETWORK, NETWORK.init(KEY, (4,)))
        theta, back = flat(start.variables.params)

        def value(theta):
            params = back(jnp.asarray(theta))
            return by_hand(*(np.asarray(scores(params, x)) for x in (X, X + 0.1)), Y, loss().beta).mean()

        def slope(theta):
            steps = 1e-5 * np.eye(len(theta))
            return np.array([(value(theta + step) - value(theta - step)) / 2e-5 for step in steps])

        theta = np.asarray(theta)
        at = theta
        if awp:
            w, g = back(jnp.asarray(theta)), back(jnp.asarray(slope(theta)))
            moved = {
                name: {
                    "kernel": layer["kernel"]
                    + awp
                    * np.linalg.norm(layer["kernel"])
                    / np.linalg.norm(g[name]["kernel"])
                    * g[name]["kernel"],
                    "bias": layer["bias"],
                }
                for name, layer in w.items()
            }
            at = np.asarray(flat(moved)[0])
        found = flat(weights_after(start, loss(), awp and AWP(awp)).model.variables.params)[0]
        np.testing.assert_allclose(found, theta - 0.1 * slope(at), rtol=1e-5, atol=1e-8)


def test_no_perturbation_of_weights_is_plain_training_to_rounding():
    start = Model(NETWORK, NETWORK.init(KEY, (4,)))
    found = [flat(weights_after(start, TRADES(), awp).model.variables.params)[0] for awp in (None, AWP(0.0))]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-7)


def test_the_attack_of_trades_climbs_the_divergence_and_that_of_mart_the_cross_entropy():
    """Sign ascent written out, from the same random points."""
    with enable_x64():
        start, x = Model(NETWORK, NETWORK.init(KEY, (4,))), jnp.asarray(X)
        seen = {}

        class Seen(PGD):
            def __call__(self, model, x, y, *, key):
                seen["first"] = PGD(self.epsilon, n_steps=1, step_size=0.0)(model, x, y, key=key)
                seen["x"], seen["y"] = x, y
                seen["adv"] = super().__call__(model, x, y, key=key)
                return seen["adv"]

        def climbs(loss, value):
            with jax.disable_jit(False):
                list(
                    train(
                        start,
                        X,
                        Y,
                        key=KEY,
                        loss=loss,
                        attacks=(Seen(0.1, n_steps=3, step_size=0.05),),
                        optimizer=optax.sgd(0.0),
                        batch_size=6,
                    )
                )
            return value

        order = np.random.default_rng([*np.asarray(jax.random.key_data(KEY)).tolist(), 0]).permutation(6)
        for loss, value in (
            (TRADES(), lambda z: kl_jax(x[order], z)),
            (
                MART(),
                lambda z: optax.softmax_cross_entropy_with_integer_labels(
                    scores(start.variables.params, z), jnp.asarray(Y[order])
                ).sum(),
            ),
        ):

            def kl_jax(x, z):
                p = jax.nn.softmax(scores(start.variables.params, x))
                q = jax.nn.softmax(scores(start.variables.params, z))
                return (p * jnp.log(p / q)).sum()

            force = pytest.MonkeyPatch()
            force.setattr("ntkrobust_sk.execution.loops.prefers_compiled_loop", lambda *_, **__: False)
            climbs(loss, value)
            force.undo()
            z = seen["first"]
            for _ in range(3):
                z = jnp.clip(z + 0.05 * jnp.sign(jax.grad(value)(z)), x[order] - 0.1, x[order] + 0.1).clip(0, 1)
            np.testing.assert_allclose(seen["adv"], z, atol=1e-12)


def test_the_divergence_as_scores_has_itself_as_log_odds():
    model = Model(NETWORK, NETWORK.init(KEY, (4,)))
    x, z = jnp.asarray(X, jnp.float32), jnp.asarray(X[::-1].copy(), jnp.float32)
    found = Divergence(model, jax.nn.log_softmax(model(x)))(z)
    np.testing.assert_allclose(found[:, 1], kl(p_of(model(x)), p_of(model(z))), rtol=1e-3)
    assert (found[:, 0] == 0).all()


@pytest.mark.parametrize("loss", [AdversarialTraining(), TRADES(), MART()])
@pytest.mark.parametrize("awp", [None, AWP(0.01)])
def test_divergence_of_training_is_raised_whatever_the_loss(loss, awp):
    start = Model(NETWORK, NETWORK.init(KEY, (4,)))
    with pytest.raises(TrainingDivergedError) as raised:
        for _ in range(5):
            start = weights_after(start, loss, awp, rate=1e38, attack=PGD(0.1, n_steps=2)).model
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(raised.value.state.model.variables))


def run(**options):
    start = Model(NETWORK, NETWORK.init(KEY, (4,)))
    defaults = {"key": KEY, "optimizer": optax.sgd(0.1), "attacks": (PGD(0.1, n_steps=2),)}
    return next(train(start, X, options.pop("y", Y), **defaults | options))


@pytest.mark.parametrize("attack", [FGSM(0.1), PGD(0.1, random_start=False)])
def test_an_attack_that_starts_at_the_input_is_refused_by_trades_alone(attack):
    with pytest.raises(ValueError, match="starts at random"):
        run(loss=TRADES(), attacks=(attack,))
    run(loss=MART(), attacks=(attack,))
    run(loss=TRADES(), attacks=(NFGSM(0.1),))
    run(loss=TRADES(), attacks=(Clean(),))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"loss": "trades"}, "loss must be a loss in training"),
        ({"loss": TRADES}, "loss must be a loss in training"),
        ({"weight_perturbation": 0.01}, "AWP"),
        ({"loss": TRADES(), "y": np.eye(3)[Y]}, "TRADES needs integer labels"),
        ({"loss": MART(), "y": np.eye(3)[Y]}, "MART needs integer labels"),
    ],
)
def test_what_is_no_loss_or_does_not_fit_the_targets_is_refused(options, said):
    with pytest.raises((TypeError, ValueError), match=said):
        run(**options)


@pytest.mark.parametrize("kind, name", [(TRADES, "beta"), (MART, "beta"), (AWP, "gamma")])
@pytest.mark.parametrize("value", [-1, np.nan, np.inf, "6", None, True])
def test_weights_of_losses_are_finite_numbers_from_zero_on(kind, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0"):
        kind(value)
