"""σ-zero against the fewest features that have to change, found exactly or by trying all."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from ntkrobust_sk import MLP, Box, Model, SigmaZero, minimal_perturbations, robust_accuracy, robustness_report
from ntkrobust_sk.attacks.norms import L0
from ntkrobust_sk.attacks.skeleton import Attack
from ntkrobust_sk.attacks.tiled import attack_in_tiles
from ntkrobust_sk.attacks.valid_points import move_to_valid_points

KEY = jax.random.key(0)
N, D = 200, 30
RNG = np.random.default_rng(0)
X = RNG.uniform(size=(N, D)).astype(np.float32)
W = RNG.normal(size=D).astype(np.float32)


def linear(weight, offset, x):
    """Scores of label 1 against label 0: the sign of x @ weight - offset decides."""
    return jnp.concatenate([0 * x[:, :1], (x @ weight - offset)[:, None]], axis=1)


def fewest(weight, offset, x, low=0.0, high=1.0):
    """The exact number of features that have to change: those that help most go to their bounds first."""
    value = x.astype(float) @ weight.astype(float) - offset
    room = np.where(value[:, None] * weight > 0, x - low, high - x)
    helped = np.cumsum(np.sort(abs(weight) * room, axis=1)[:, ::-1], axis=1)
    return 1 + (helped <= abs(value)[:, None]).sum(1)


@pytest.mark.slow
@pytest.mark.parametrize("offset", [np.median(X @ W), np.median(X @ W) + 1.5])
def test_on_a_linear_model_the_fewest_features_are_found(offset):
    model = Partial(linear, jnp.asarray(W), jnp.float32(offset))
    y = np.asarray(model(X).argmax(1))
    points, counts = map(np.asarray, SigmaZero(D, 30).nearest(model, X, y, key=KEY))
    exact = fewest(W, offset, X)
    assert exact.max() > 2
    assert (counts == exact).mean() >= 0.95 and np.median(counts / exact) == 1 and (counts >= exact).all()
    np.testing.assert_array_equal(counts, (points != X).sum(1))
    assert (np.asarray(model(points).argmax(1)) != y).all() and points.min() >= 0 and points.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1, 2.5, 4])
def test_no_more_features_change_than_epsilon_and_what_needs_more_stays(epsilon):
    model = Partial(linear, jnp.asarray(W), jnp.float32(np.median(X @ W)))
    y = np.asarray(model(X).argmax(1))
    found = attack_in_tiles(SigmaZero(epsilon, 30), model, X, y, key=KEY, rows=64)
    wrong, changed = np.asarray(model(found).argmax(1)) != y, (found != X).sum(1)
    assert (changed <= epsilon).all() and (changed[~wrong] == 0).all() and (changed[wrong] > 0).all()
    possible = fewest(W, np.median(X @ W), X) <= epsilon
    assert wrong[possible].mean() >= 0.95 and not wrong[~possible].any()


@pytest.mark.slow
def test_a_network_needs_as_few_features_as_trying_all_finds():
    network = MLP(n_outputs=3, widths=(16,))
    model = Model(network, jax.tree.map(lambda leaf: 2 * leaf, network.init(KEY, (6,))))
    x = RNG.uniform(size=(40, 6)).astype(np.float32)
    y = np.asarray(model(x).argmax(1))
    points, counts = map(np.asarray, SigmaZero(6, 200).nearest(model, x, y, key=KEY))
    tried = np.full(len(x), np.inf)
    for size in (3, 2, 1):
        for where in itertools.combinations(range(6), size):
            for values in itertools.product(np.linspace(0, 1, 5), repeat=size):
                moved = x.copy()
                moved[:, where] = values
                tried[np.asarray(model(moved).argmax(1)) != y] = size
    within = np.isfinite(tried)
    assert len(set(tried[within])) > 1
    assert (counts[within] <= tried[within]).mean() >= 0.9
    found = np.isfinite(counts)
    assert (np.asarray(model(points[found]).argmax(1)) != y[found]).all()
    np.testing.assert_array_equal(counts[found], (points != x).sum(1)[found])


@pytest.mark.slow
def test_fixed_features_stay_and_integers_and_groups_have_values_of_theirs():
    box = Box(0, 1, mask=[True] * 20 + [False] * 10, integers=[0, 1], one_hot=[(2, 3, 4)])
    x = X.copy()
    x[:, :2] = np.rint(x[:, :2])
    x[:, 2:5] = np.eye(3)[RNG.integers(3, size=N)]
    model = Partial(linear, jnp.asarray(W), jnp.float32(np.median(x @ W)))
    y = np.asarray(model(x).argmax(1))
    found = attack_in_tiles(SigmaZero(6, 30, bounds=box), model, x, y, key=KEY, rows=N)
    assert ((found != x).sum(1) <= 6).all() and (found[:, 20:] == x[:, 20:]).all()
    assert np.isin(found[:, :5], (0, 1)).all() and (found[:, 2:5].sum(1) == 1).all()
    assert (np.asarray(model(found).argmax(1)) != y).mean() > 0.8


@pytest.mark.slow
def test_features_of_other_units_and_without_bounds():
    """Where nothing bounds it, one feature is enough."""
    model = Partial(linear, jnp.asarray(W), jnp.float32(np.median(X @ W)))
    y = np.asarray(model(X).argmax(1))
    _, counts = SigmaZero(D, 20, bounds=None).nearest(model, X, y, key=KEY)
    assert (np.asarray(counts) == 1).all()
    wide = Partial(linear, jnp.asarray(W / 100), jnp.float32(np.median(X @ W)))
    attack = SigmaZero(D, 30, 100.0, sigma=10.0, threshold=30.0, bounds=(0, 100))
    counts = np.asarray(attack.nearest(wide, 100 * X, y, key=KEY)[1])
    assert (counts == fewest(W, np.median(X @ W), X)).mean() >= 0.95


@pytest.mark.slow
def test_estimators_are_attacked_in_numbers_of_features():
    y = (X[:, 0] + X[:, 1] > 1).astype(int)
    classifier = LogisticRegression(C=100).fit(X, y)
    exact = fewest(classifier.coef_[0], -classifier.intercept_[0], X.astype(float))
    exact[classifier.predict(X) != y] = 0
    found = minimal_perturbations(classifier, X, y, SigmaZero(D, 30))
    assert (found == exact).mean() >= 0.95
    assert robust_accuracy(classifier, X, y, SigmaZero(1, 30)) == pytest.approx((exact > 1).mean(), abs=0.05)


def test_where_only_norms_are_known_it_is_refused_by_name():
    y = (X[:, 0] > 0.5).astype(int)
    with pytest.raises(ValueError, match="the report is in the norm l2, but SigmaZero is an attack in l0"):
        robustness_report(LogisticRegression().fit(X, y), X, y, [0.1], norm="l2", attacks=SigmaZero(1))
    with pytest.raises(TypeError, match="states no ball in which Square could take its place"):
        robust_accuracy(RandomForestClassifier(3).fit(X, y), X, y, SigmaZero(1))
    with pytest.raises(ValueError, match="sigma must be a finite number > 0"):
        SigmaZero(1, sigma=0)


def test_it_is_one_class_with_one_method_beside_what_it_checks():
    own = {name for name in vars(SigmaZero) if callable(getattr(SigmaZero, name)) and not name.startswith("__")}
    assert issubclass(SigmaZero, Attack) and own - {"norm", "norms"} == {"_search"}


def test_the_ball_keeps_the_largest_changes_and_of_equal_ones_the_first():
    delta = np.array([[0.1, -0.5, 0.5, 0.2], [0.0, 0.0, 0.3, 0.0]], np.float32)
    one, two = delta * [[0, 1, 0, 0], [1, 1, 1, 1]], delta * [[0, 1, 1, 0], [1, 1, 1, 1]]
    np.testing.assert_array_equal(L0().project(jnp.asarray(delta), 2.9), two)
    np.testing.assert_array_equal(L0().project(jnp.asarray(delta), 1), one)
    x = np.zeros_like(delta)
    np.testing.assert_array_equal(move_to_valid_points(delta, x, SigmaZero(1, bounds=None)), one)


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1, 2, 12])
def test_whole_numbers_change_as_few_as_have_to_and_rounding_makes_nothing_right_again(epsilon):
    x = RNG.integers(0, 2, size=(N, 12)).astype(np.float32)
    weight = RNG.normal(size=12).astype(np.float32)
    offset = np.median(x @ weight) + np.float32(0.01)
    model = Partial(linear, jnp.asarray(weight), jnp.float32(offset))
    y = np.asarray(model(x).argmax(1))
    attack = SigmaZero(epsilon, 30, bounds=Box(integers=range(12)))
    found = attack_in_tiles(attack, model, x, y, key=KEY, rows=N)
    assert np.isin(found, (0, 1)).all() and ((found != x).sum(1) <= epsilon).all()
    possible = fewest(weight, offset, x) <= epsilon
    wrong = np.asarray(model(found).argmax(1)) != y
    assert possible.mean() > 0.1 and wrong[possible].mean() >= 0.95 and not wrong[~possible].any()


@pytest.mark.slow
def test_a_category_changes_to_the_one_that_lowers_the_margin_most():
    x = np.eye(5, dtype=np.float32)[RNG.integers(5, size=40)]
    model = Partial(linear, jnp.asarray([2.0, 1.0, 0.1, -1.0, -2.0]), jnp.float32(0))
    y = np.asarray(model(x).argmax(1))
    found = attack_in_tiles(SigmaZero(2, 30, bounds=Box(one_hot=[range(5)])), model, x, y, key=KEY, rows=40)
    np.testing.assert_array_equal(found.sum(1), 1)
    assert (np.asarray(model(found).argmax(1)) != y).all()
