"""The contract of attacks, ours and users' own: what they declare, take and give back."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ntkrobust_sk import (
    APGD,
    DDN,
    FAB,
    FGSM,
    FMN,
    MLP,
    PGD,
    AdversarialKernelTrainer,
    AutoAttack,
    EmpiricalNTKClassifier,
    Model,
    SigmaZero,
    Square,
    Stateless,
    Variables,
    robustness_report,
)
from ntkrobust_sk.attacks.norms import NORMS
from ntkrobust_sk.attacks.pgd import NFGSM, Clean
from ntkrobust_sk.attacks.tiled import attack_in_tiles

OURS = [Clean(), *(kind(0.1) for kind in (PGD, FGSM, NFGSM, APGD, FAB, FMN, DDN, SigmaZero, Square, AutoAttack))]


@pytest.mark.parametrize("attack", OURS, ids=lambda attack: type(attack).__name__)
def test_attacks_declare_what_they_need_and_it_is_no_field(attack):
    assert attack.needs_gradients == (not isinstance(attack, Clean | Square))
    assert attack.one_key_each
    assert {"one_key_each", "needs_gradients"}.isdisjoint(field.name for field in dataclasses.fields(attack))


N, D = 20, 4
KEY = jax.random.key(0)
X = np.random.default_rng(0).uniform(0.1, 0.9, size=(N, D)).astype(np.float32)
W = jnp.asarray(np.random.default_rng(1).normal(size=(D, 3)), jnp.float32)
MODEL = Partial(lambda w, x: x @ w, W)
Y = np.asarray(MODEL(X).argmax(1), np.int32)
EACH = [
    *(PGD(0.1, 4, norm=norm) for norm in NORMS),
    FGSM(0.1),
    NFGSM(0.1),
    *(APGD(0.1, 6, norm=norm) for norm in NORMS),
    APGD(0.1, 6, loss="dlr"),
    *(FAB(0.1, 4, norm=norm) for norm in NORMS),
    *(FMN(0.1, 6, norm=norm) for norm in NORMS),
    DDN(0.1, 6),
    SigmaZero(2, 6),
    *(Square(0.1, 20, norm=norm) for norm in NORMS),
    AutoAttack(0.1, n_steps=6, n_queries=20),
]
each_attack = pytest.mark.parametrize("attack", EACH, ids=str)
# Each attack once and each norm: for what they have in common.
ONCE = [
    PGD(0.1, 4),
    FGSM(0.1),
    NFGSM(0.1),
    APGD(0.1, 6, norm="l1"),
    FAB(0.1, 4, norm="l2"),
    FMN(0.1, 6),
    DDN(0.1, 6),
    SigmaZero(2, 6),
    Square(0.1, 20, norm="l1"),
    AutoAttack(0.1, n_steps=6, n_queries=20),
]
each_attack_once = pytest.mark.parametrize("attack", ONCE, ids=str)


# What is NaN is neither gradient, answer nor example


def without_gradient(w, x):
    """Scores whose gradients are all NaN: those of a norm at zero."""
    return x @ w + jnp.linalg.norm(0 * x, axis=1, keepdims=True)


@pytest.mark.slow
@each_attack
def test_where_gradients_are_nan_examples_are_finite_and_nothing_falls_by_that(attack):
    model = Partial(without_gradient, W)
    small = dataclasses.replace(attack, epsilon=1e-6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = attack_in_tiles(small, model, X, Y, key=KEY, rows=N)
    # that gradients are missing is said, once, and nothing else
    said = ["the gradients are not finite" in str(warning.message) for warning in caught]
    assert said == [True] * attack.needs_gradients
    assert np.isfinite(found).all()
    assert (np.asarray(MODEL(found).argmax(1)) == Y).all()


@pytest.mark.slow
@each_attack
def test_a_feature_whose_gradient_is_nan_does_not_hold_up_the_others(attack):
    if isinstance(attack, Square):
        return
    # the root's derivative at zero is infinite, and times zero NaN
    model = Partial(lambda w, x: x @ w + jnp.sqrt(0 * x[:, :1]), W)
    far = dataclasses.replace(attack, epsilon=1.0)
    found = attack_in_tiles(far, model, X, Y, key=KEY, rows=N)
    assert np.isfinite(found).all() and (np.asarray(MODEL(found).argmax(1)) != Y).any()


@pytest.mark.slow
@each_attack_once
def test_points_without_scores_do_not_count_as_found(attack):
    """Scores that are NaN beyond a wall, on whose near side all answers are right."""
    wall = Partial(lambda x: jnp.where(x[:, :1] < 0.5, jnp.nan, jnp.stack([x[:, 0], -x[:, 0], -1 - x[:, 0]], 1)))
    inputs, y = np.full((N, D), 0.55, np.float32), np.zeros(N, np.int32)
    if hasattr(attack, "nearest"):
        assert np.isinf(np.asarray(attack.nearest(wall, inputs, y, key=KEY)[1])).all()
    if isinstance(attack, AutoAttack):
        assert attack.run(wall, inputs, y, key=KEY).robust_accuracy == 1


def test_an_estimator_counts_the_input_where_scores_are_nan_and_says_so():
    network = Stateless(lambda p, x: jnp.where(x[:, :1] > 2, jnp.nan, x @ p))
    trainer = AdversarialKernelTrainer(Model(network, Variables(W[:, :2])), max_epochs=0, random_state=0)
    trainer.fit(X, np.arange(N) % 2)
    y = trainer.predict(X)

    def far(model, x, y, *, key):
        return x + 3

    with pytest.warns(UserWarning, match=r"scores are NaN at 20 of 20 inputs .*as if it had not been attacked"):
        assert trainer.robust_score(X, y, far) == 1
    with pytest.raises(ValueError, match="the scores of 20 of 20 inputs are NaN"):
        trainer.predict(X + 3)
    with pytest.raises(ValueError, match="which float32 cannot"):
        trainer.predict(X.astype(float) + 1e300)


def test_examples_that_are_not_finite_are_counted_and_replaced_by_the_inputs():
    def broken(model, x, y, *, key):
        return x.at[:3].set(jnp.nan).at[3, 0].set(jnp.inf)

    with pytest.warns(UserWarning, match="4 of 20 adversarial examples of .* were not finite"):
        found = attack_in_tiles(broken, MODEL, X, Y, key=KEY, rows=N)
    np.testing.assert_array_equal(found, X)


# One score column, and labels


@pytest.mark.slow
@each_attack_once
def test_one_score_column_is_that_of_label_1_against_label_0(attack):
    if getattr(attack, "loss", "ce") != "ce":
        return
    column = Partial(lambda w, x: (x - 0.5) @ w[:, :1], W)
    both = Partial(lambda w, x: jnp.concatenate([0 * x[:, :1], (x - 0.5) @ w[:, :1]], 1), W)
    y = np.asarray(both(X).argmax(1), np.int32)
    found, same = (np.asarray(attack(model, X, y, key=KEY)) for model in (column, both))
    np.testing.assert_array_equal(found, same)
    assert np.isfinite(found).all() and (found != X).any()


@pytest.mark.slow
@each_attack
@pytest.mark.parametrize(
    "labels, error, message",
    [
        (lambda y: y + 1, ValueError, r"labels must lie in 0..2"),
        (lambda y: y - 5, ValueError, r"labels must lie in 0\.\."),
        (lambda y: y[:-1], ValueError, "integer labels must be of shape|same, positive number of rows"),
        (lambda y: y[:, None], ValueError, "integer labels must be of shape"),
        (lambda y: y.astype(float), ValueError, "integer labels|labels must be integers"),
        (lambda y: y.astype(str), TypeError, "y must be an array of real numbers"),
        (lambda y: None, TypeError, "y must be an array"),
        (lambda y: 1, ValueError, "y must be an array with one axis"),
        (lambda y: y.astype(complex), TypeError, "complex"),
    ],
)
def test_labels_that_do_not_fit_the_scores_are_refused(attack, labels, error, message):
    for given in (labels(Y), labels(Y + 0)):
        with pytest.raises(error, match=message):
            attack(MODEL, X, given, key=KEY)


@pytest.mark.parametrize("attack", [PGD(0.1, 2), AutoAttack(0.1, n_steps=2, n_queries=2)], ids=str)
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": X.astype(object)}, TypeError, "must be an array of real numbers"),
        ({"x": np.ma.array(X)}, TypeError, "a masked array"),
        ({"x": 5}, ValueError, "one axis"),
        ({"x": [[0.1, 0.2], [0.3]]}, ValueError, "rows have different lengths"),
        ({"x": X[:, :3]}, ValueError, "the model fails on inputs of shape"),
        ({"x": np.where(X > 0.8, np.nan, X)}, ValueError, "must be finite"),
        ({"x": X.astype(float) + 1e300}, ValueError, "which float32 cannot"),
        ({"key": "x"}, TypeError, "key must be a JAX PRNG key"),
        ({"key": None}, TypeError, "key must be a JAX PRNG key"),
        ({"key": jnp.zeros(3)}, TypeError, "key must be a JAX PRNG key"),
        ({"key": jax.random.split(KEY, 3)}, ValueError, "one for each of 20 examples"),
        ({"model": 5}, TypeError, "a model must be a function"),
        ({"model": MLP}, TypeError, "a model must be"),
        ({"model": MLP(3)}, TypeError, r"write Model\(network, variables\)"),
        ({"model": lambda x: x.sum(1)}, ValueError, r"one array of scores \(20, C\)|one array of scores"),
        ({"model": lambda x: (x, x)}, ValueError, "one array of scores"),
        ({"model": lambda x: jnp.ones((3, 3))}, ValueError, "one array of scores"),
        ({"model": lambda x: x.astype(int)}, TypeError, "real floating"),
    ],
)
def test_what_is_no_input_no_key_and_no_model_is_refused(attack, change, error, message):
    given = {"model": MODEL, "x": X, "y": Y, "key": KEY} | change
    with pytest.raises(error, match=message):
        attack(given["model"], given["x"], given["y"], key=given["key"])


def test_no_inputs_are_none_or_refused_in_words_of_their_own():
    attack, key, none = PGD(0.1, 2), jax.random.key(0), np.zeros((0, 4), np.float32)
    labels = np.zeros(0, int)
    assert attack(MODEL, none, labels, key=key).shape == (0, 4)
    assert attack_in_tiles(attack, MODEL, none, labels, key=key, rows=4).shape == (0, 4)
    # which has no answer to how many columns nothing has
    flattens = Partial(lambda w, x: x.reshape(len(x), -1) @ w, W)
    with pytest.raises(ValueError, match=r"x holds no inputs to attack: its shape is \(0, 4\)"):
        attack(flattens, none, labels, key=key)


@pytest.mark.slow
def test_lists_other_byte_orders_booleans_and_old_keys_are_understood():
    attack = PGD(0.1, 2)
    right = attack(MODEL, X, Y, key=KEY)
    for x in (X.tolist(), X.astype(">f4"), X.astype(float), jnp.asarray(X)):
        np.testing.assert_array_equal(attack(MODEL, x, Y.tolist(), key=KEY), right)
    np.testing.assert_array_equal(attack(MODEL, X, Y, key=jax.random.PRNGKey(0)), right)
    binary = Partial(lambda w, x: x @ w[:, :2], W)
    y = np.asarray(binary(X).argmax(1))
    np.testing.assert_array_equal(attack(binary, X, y > 0, key=KEY), attack(binary, X, y, key=KEY))


@pytest.mark.parametrize(
    "made",
    [
        lambda: PGD(10**400),
        lambda: PGD(10**5000),
        lambda: PGD(0.1, random_start="x"),
        lambda: PGD(0.1, norm=np.array([1, 2])),
        lambda: PGD(0.1, bounds="01"),
        lambda: PGD(0.1, bounds={0, 1}),
        lambda: PGD(0.1, bounds=(0, 10**400)),
        lambda: PGD(0.1, bounds=(0, 1j)),
        lambda: PGD(0.1, bounds=(np.inf, np.inf)),
        *(lambda kind=kind: kind(0.1, n_steps=True) for kind in (PGD, APGD, FAB, FMN, DDN, AutoAttack)),
        lambda: APGD(0.1, loss=["ce"]),
        lambda: Square(0.1, share="x"),
        lambda: AutoAttack(0.1, n_queries=2.5),
        lambda: FGSM("x"),
        lambda: NFGSM(0.1, noise=None),
    ],
)
def test_numbers_and_choices_of_other_kinds_are_refused(made):
    with pytest.raises(ValueError, match=r"must be|unknown"):
        made()


# Attacks of users' own


def test_an_own_attack_gets_one_key_that_differs_from_tile_to_tile_and_ours_one_each():
    seen = []

    def own(model, x, y, *, key):
        seen.append(key)
        return x + 0.01 * (jax.random.normal(key, x.shape) if key.ndim == 0 else 0)

    found = attack_in_tiles(own, MODEL, X, Y, key=KEY, rows=8)
    assert [key.shape for key in seen] == [()] * 3
    assert not np.allclose((found - X)[:8], (found - X)[8:16])
    own.one_key_each = True
    attack_in_tiles(own, MODEL, X, Y, key=KEY, rows=8)
    assert seen[-1].shape == (8,)


@pytest.mark.parametrize(
    "result, error, message",
    [
        (lambda x: x[:1], ValueError, "shaped like x"),
        (lambda x: x[:, :1], ValueError, "shaped like x"),
        (lambda x: x[0], ValueError, "shaped like x"),
        (lambda x: None, TypeError, "floating numbers shaped like x, got None"),
        (lambda x: x.tolist(), TypeError, "floating numbers"),
        (lambda x: (x,), TypeError, "floating numbers"),
        (lambda x: np.asarray(x, object), TypeError, "floating numbers"),
        (lambda x: x + 1j, TypeError, "floating numbers"),
        (lambda x: x.astype(int), TypeError, "floating numbers"),
    ],
)
def test_results_of_another_shape_or_kind_are_refused(result, error, message):
    with pytest.raises(error, match=message):
        attack_in_tiles(lambda model, x, y, *, key: result(x), MODEL, X, Y, key=KEY, rows=8)


def test_an_attack_that_raises_keeps_its_own_error():
    def failing(model, x, y, *, key):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        attack_in_tiles(failing, MODEL, X, Y, key=KEY, rows=8)


@pytest.mark.parametrize("attack", [PGD, "pgd", None, 5, lambda m, x: x])
def test_what_is_no_attack_is_refused(attack):
    with pytest.raises(TypeError, match="attack"):
        attack_in_tiles(attack, MODEL, X, Y, key=KEY, rows=8)


def test_an_epsilon_without_norm_and_bounds_is_refused():
    def own(model, x, y, *, key):
        return x

    own.epsilon = 0.1
    with pytest.raises(TypeError, match="must state norm and bounds too"):
        attack_in_tiles(own, MODEL, X, Y, key=KEY, rows=8)


# Nothing is compiled by the number of rows


@pytest.mark.slow
def test_other_numbers_of_rows_compile_nothing():
    network = MLP(n_outputs=2, widths=(8,))
    model = Model(network, network.init(KEY, (D,)))
    big = np.random.default_rng(2).uniform(size=(300, D)).astype(np.float32)
    labels = (big[:, 0] > 0.5).astype(int)
    clf = EmpiricalNTKClassifier(model, random_state=0).fit(big, labels)
    attacks = PGD(0.1, 2), AutoAttack(0.1, n_steps=2, n_queries=2)

    def everything(n):
        for attack in attacks:
            clf.robust_score(big[:n], labels[:n], attack)
        clf.predict(big[:n])
        robustness_report(model, big[:n], labels[:n], [0.05, 0.1], attacks=attacks[0])

    everything(300), everything(140)
    compiled = []
    monitoring = jax.monitoring.register_event_duration_secs_listener
    monitoring(lambda name, *_, **__: compiled.append(name) if name.endswith("backend_compile_duration") else None)
    for n in (141, 150, 163):
        everything(n)
    assert not compiled
    jnp.ones(37).sum().block_until_ready()
    assert compiled
