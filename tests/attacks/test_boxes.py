"""Boxes: features that are fixed, integers and one-hot groups, in every attack."""

import importlib.util
import pickle
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from norms_in_numpy import ORDERS
from scipy.stats import kstest
from sklearn.linear_model import LogisticRegression

from ntkrobust_sk import APGD, DDN, FAB, FGSM, FMN, NFGSM, PGD, AutoAttack, Box, Square, perturb, robust_accuracy
from ntkrobust_sk.attacks.norms import NORMS
from ntkrobust_sk.attacks.threat_model import admitted, ball_around, project_into, samples
from ntkrobust_sk.attacks.tiled import attack_in_tiles
from ntkrobust_sk.attacks.valid_points import move_to_valid_points
from ntkrobust_sk.targets.target import enable_x64

KEY = jax.random.key(0)
N, D = 20, 6
MASK = np.array([True, False, True, True, False, True])
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(D, 4)).astype(np.float32)
# what matters most may not change
WEIGHTS[1] *= 10
X = RNG.uniform(0.05, 0.95, size=(N, D)).astype(np.float32)
each_norm = pytest.mark.parametrize("norm", NORMS)


def scores(weights, offset, x):
    return jnp.tanh(x - 0.5) @ weights + offset


MODEL = jax.tree_util.Partial(scores, jnp.asarray(WEIGHTS), jnp.zeros((1, 4)))
Y = np.asarray(MODEL(X).argmax(1), np.int32)


def every_attack(norm, epsilon, bounds):
    """All of them in L1; in the other norms those that do something else there."""
    common = {"norm": norm, "bounds": bounds}
    found = [PGD(epsilon, 4, **common), FAB(epsilon, 5, n_targets=2, **common), Square(epsilon, 20, **common)]
    others = {
        "linf": [NFGSM(epsilon, bounds=bounds)],
        "l2": [DDN(epsilon, 5, bounds=bounds)],
        "l1": [FGSM(epsilon, **common), APGD(epsilon, 5, **common), FMN(epsilon, 5, **common)],
    }
    return found + others[norm]


# Fixed features


@pytest.mark.slow
@each_norm
def test_no_attack_changes_a_fixed_feature_and_every_one_changes_others(norm):
    for attack in every_attack(norm, 0.8, Box(mask=MASK)):
        x_adv = np.asarray(attack(MODEL, X, Y, key=KEY))
        np.testing.assert_array_equal(x_adv[:, ~MASK], X[:, ~MASK], err_msg=repr(attack))
        assert (x_adv[:, MASK] != X[:, MASK]).any(), attack
        assert x_adv.min() >= 0 and x_adv.max() <= 1


@pytest.mark.slow
@each_norm
def test_nothing_is_spent_on_fixed_features(norm):
    """What remains is the same attack on the features that may change alone."""
    attack = PGD(0.3, 5, norm=norm, random_start=False, bounds=Box(mask=MASK))
    x = 0.4 + 0.2 * X[:1]
    x_adv = np.asarray(attack(MODEL, x, Y[:1], key=KEY))
    rest = jnp.tanh(x[:, ~MASK] - 0.5) @ WEIGHTS[~MASK]
    smaller = jax.tree_util.Partial(scores, jnp.asarray(WEIGHTS[MASK]), rest)
    expected = PGD(0.3, 5, norm=norm, random_start=False)(smaller, x[:, MASK], Y[:1], key=KEY)
    np.testing.assert_allclose(x_adv[:, MASK], expected, atol=1e-6)
    assert np.linalg.norm(x_adv - x, ord=ORDERS[norm], axis=1) == pytest.approx(0.3, abs=1e-5)


@pytest.mark.slow
@each_norm
def test_random_starts_are_uniform_in_the_ball_of_the_free_features(norm):
    x = jnp.zeros((3000, D))
    ball = ball_around(x, 1.0, Box(-1, 1, mask=MASK))
    noise = np.asarray(samples(NORMS[norm], x, jax.random.split(KEY, len(x)), ball))
    assert (noise[:, ~MASK] == 0).all()
    length = np.linalg.norm(noise, ord=ORDERS[norm], axis=1)
    assert kstest(length ** MASK.sum(), "uniform").pvalue > 0.01


def test_a_fixed_feature_may_lie_outside_of_the_bounds_and_a_free_one_may_not():
    box, x = Box(mask=MASK), X.copy()
    x[:, 1] = 7
    admitted(PGD(0.1, bounds=box), x)
    assert (np.asarray(PGD(0.1, 2, bounds=box)(MODEL, x, Y, key=KEY))[:, 1] == 7).all()
    x[:, 0] = 7
    with pytest.raises(ValueError, match=r"bounds are \(0.0, 1.0\), but X ranges"):
        admitted(PGD(0.1, bounds=box), x)


def test_masks_fit_images_and_bounds_of_each_feature_and_hold_inside_of_jit():
    mask = np.arange(12).reshape(3, 2, 2) % 3 != 0
    x = jnp.asarray(RNG.uniform(0.2, 0.8, size=(4, 3, 2, 2)), jnp.float32)
    model = jax.tree_util.Partial(lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], 1))
    attack = PGD(0.5, 3, bounds=Box(np.linspace(0, 0.1, 12), 1, mask=mask))
    x_adv = jax.jit(lambda x: attack(model, x, jnp.zeros(4, int), key=KEY))(x)
    expected = np.where(mask, np.maximum(x - 0.5, np.linspace(0, 0.1, 12).reshape(mask.shape)), x)
    np.testing.assert_allclose(x_adv, expected, atol=1e-6)
    np.testing.assert_allclose(project_into(x - 1, x, attack), expected, atol=1e-6)


# A million examples in examples/check_attacks_stay_inside.py; here is a sample of them


@pytest.fixture(scope="module")
def inside():
    path = Path(__file__).parents[2] / "examples" / "check_attacks_stay_inside.py"
    spec = importlib.util.spec_from_file_location("check_attacks_stay_inside", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@each_norm
@pytest.mark.parametrize("dtype", ["float32", "float64 as float32"])
def test_no_example_lies_outside_of_ball_and_bounds(inside, norm, dtype, tmp_path):
    for case in inside.cases(["PGD"], [norm], ["per feature", "box"], [dtype]):
        n_outside, furthest, n_moved = inside.check(case, 1000, tmp_path, inside.victim())
        assert n_outside == 0 and n_moved > 500 and furthest <= 1, case


def test_an_example_outside_would_be_found(inside):
    attack = PGD(0.1, bounds=inside.BOUNDS["box"])
    x = inside.inputs(attack.bounds, 5, "float64", 0)
    beyond = x + np.diag([1, 0, 0, 0, 0, 0, 0, 0, 0, 0])[[0, 1, 2, 3, 4]] * 0.1000001
    beyond[1, 5] += 1e-9
    beyond[2, 9] += 1e-9
    beyond[3, 4] = np.nextafter(inside.HIGH[4], 9)
    x[3, 4] = inside.HIGH[4]
    assert inside.outside(beyond, x, attack) == (4, pytest.approx(1.000001))
    assert inside.outside(x, x, attack) == (0, 0.0)


# Integers and one-hot groups

GROUP = (1, 3, 4)
TABLE = Box((0, 0, -2, 0, 0, 0), (1, 1, 5.5, 1, 1, 3), integers=(2, 5), one_hot=(GROUP,))


def table(n, seed=0):
    """A real feature, integers in 2 and 5, and a category in 1, 3 and 4."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, D), np.float32)
    x[:, 0], x[:, 2], x[:, 5] = rng.uniform(size=n), rng.integers(-2, 6, n), rng.integers(0, 4, n)
    x[np.arange(n), np.asarray(GROUP)[rng.integers(0, 3, n)]] = 1
    return x


def assert_valid(x):
    assert (x[:, [2, 5]] == np.rint(x[:, [2, 5]])).all()
    assert (np.sort(x[:, GROUP], axis=1) == [0, 0, 1]).all()
    assert (x >= TABLE.low).all() and (x <= TABLE.high).all()


@pytest.mark.parametrize("epsilon", [0.4, 1.0, 1.7, 3.0])
def test_in_the_largest_norm_discrete_features_become_the_nearest_valid_ones_of_all(epsilon):
    x = table(40)
    wanted = np.clip(x + RNG.uniform(-epsilon, epsilon, size=x.shape), TABLE.low, TABLE.high).astype(np.float32)
    found = move_to_valid_points(wanted, x, PGD(epsilon, bounds=TABLE))
    assert_valid(found)
    np.testing.assert_allclose(found[:, 0], wanted[:, 0], atol=1e-6)
    for row, target, result in zip(x, wanted, found, strict=True):
        for i in (2, 5):
            values = np.arange(np.ceil(TABLE.low[i]), np.floor(TABLE.high[i]) + 1)
            values = values[np.abs(values - row[i]) <= epsilon]
            assert abs(result[i] - target[i]) == np.abs(values - target[i]).min()
        vectors = np.eye(3) if epsilon >= 1 else row[None, GROUP]
        nearest = ((vectors - target[list(GROUP)]) ** 2).sum(1).min()
        assert ((result - target)[list(GROUP)] ** 2).sum() == pytest.approx(nearest, rel=1e-5)


@pytest.mark.parametrize("norm, switch", [("l2", np.sqrt(2)), ("l1", 2.0)])
def test_in_other_norms_discrete_features_come_first_and_the_ball_holds_them_all(norm, switch):
    x = table(200)
    for epsilon in (0.7, 1.0, switch, 3.3):
        attack = PGD(epsilon, norm=norm, bounds=TABLE)
        wanted = np.asarray(project_into(x + RNG.normal(0, 2, size=x.shape).astype(np.float32), x, attack))
        found = move_to_valid_points(wanted, x, attack)
        assert_valid(found)
        assert np.linalg.norm(found.astype(float) - x, ord=ORDERS[norm], axis=1).max() <= epsilon
        asked = np.take_along_axis(wanted, np.asarray(GROUP)[x[:, GROUP].argmax(1)][:, None], 1)[:, 0]
        asked = wanted[:, GROUP].max(1) > asked
        switched = (found[:, GROUP] != x[:, GROUP]).any(1)
        np.testing.assert_array_equal(switched, asked & (epsilon >= switch))
        if epsilon == 1.0:
            assert (found[:, [2, 5]] != x[:, [2, 5]]).any(1).mean() > 0.2


def test_a_category_that_may_not_change_does_not():
    x = table(30)
    mask = np.ones(D, bool)
    mask[4] = False
    box = Box(TABLE.low, TABLE.high, mask, TABLE.integers, TABLE.one_hot)
    found = move_to_valid_points(np.where(np.arange(D) == 1, 1, 0) + 0 * x, x, PGD(9.0, bounds=box))
    fixed = x[:, 4] == 1
    assert 0 < fixed.sum() < 30
    np.testing.assert_array_equal(found[fixed][:, GROUP], x[fixed][:, GROUP])
    assert (found[~fixed, 1] == 1).all()


@pytest.mark.slow
def test_what_comes_back_from_tiles_autoattack_and_estimators_is_valid():
    x = table(60)
    y = np.asarray(x[:, 2] + 2 * x[:, 1] - x[:, 5] > 1, np.int32)
    classifier = LogisticRegression().fit(x, y)
    for attack in (PGD(1.5, 10, bounds=TABLE), AutoAttack(1.5, n_steps=5, n_queries=20, bounds=TABLE)):
        x_adv = perturb(classifier, x, y, attack)
        assert_valid(x_adv)
        assert np.abs(x_adv - x.astype(float)).max() <= 1.5
        accuracy = (classifier.predict(x_adv) == y).mean()
        assert robust_accuracy(classifier, x, y, attack) == accuracy < classifier.score(x, y)
    model = jax.tree_util.Partial(lambda x: jnp.stack([x.sum(1), -x.sum(1)], 1))
    assert_valid(attack_in_tiles(PGD(1.5, 3, bounds=TABLE), model, x, y, key=KEY, rows=25))


# Configuration


def test_boxes_are_plain_values_and_unpack_to_their_bounds():
    low, high = Box(0, [1, 2, 3])
    assert low == 0.0 and high == (1.0, 2.0, 3.0)
    for box in (Box(), TABLE, Box(0, 255, mask=np.eye(2, dtype=bool)), Box(-np.inf, np.inf, [True, False])):
        names = {"Box": Box, "PGD": PGD, "inf": np.inf}
        for copy in (pickle.loads(pickle.dumps(box)), eval(repr(box), names)):
            assert copy == box and hash(copy) == hash(box)
        attack = PGD(0.1, bounds=box)
        assert eval(repr(attack), names) == attack and attack.bounds is box
    assert Box(mask=[True, False]) == Box(0.0, 1.0, np.array([True, False])) != Box()


@pytest.mark.parametrize(
    "made, message",
    [
        (lambda: Box(1, 0), "low <= high"),
        (lambda: Box(mask=[0, 1]), "mask must hold a boolean for each feature, True where it may change, got"),
        (lambda: Box(integers=[-1]), "integers must be positions of features, integers >= 0"),
        (lambda: Box(integers=[0.5]), "integers must be positions"),
        (lambda: Box(integers=3), "integers must be positions"),
        (lambda: Box(one_hot=[1, 2]), "each group of one_hot must be positions"),
        (lambda: Box(one_hot=[[1]]), "two positions or more"),
        (lambda: Box(integers=[1], one_hot=[[1, 2]]), "one kind of values"),
        (lambda: Box(integers=[1, 1]), "one kind of values"),
    ],
)
def test_boxes_that_make_no_sense_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()


@pytest.mark.parametrize(
    "box, message",
    [
        (Box(mask=[True] * 5), r"the attack's mask has 5 numbers, but inputs have 6 features"),
        (Box(integers=[6]), "positions below 6, the number of features, got 6"),
        (Box(one_hot=[[0, 9]]), "positions below 6"),
        (Box(integers=[2]), r"feature 2 is one of the attack's integers, but X holds 0\.\d+ there; round it"),
        (Box(one_hot=[[0, 1]]), r"features \(0, 1\) are a one-hot group of the attack, but X holds \["),
    ],
)
def test_inputs_that_do_not_fit_a_box_are_refused(box, message):
    attacks = [PGD(0.1, bounds=box), APGD(0.1, bounds=box), FMN(0.1, bounds=box), Square(0.1, bounds=box)]
    for attack in attacks:
        with pytest.raises(ValueError, match=message):
            attack(MODEL, X, Y, key=KEY)
        with pytest.raises(ValueError, match=message):
            attack_in_tiles(attack, MODEL, X, Y, key=KEY, rows=N)


def test_an_attack_of_ones_own_is_held_by_a_box_too():
    def outwards(model, x, y, *, key):
        return x + 10

    for name, value in {"epsilon": 2.5, "norm": "linf", "bounds": TABLE}.items():
        setattr(outwards, name, value)
    x = table(10)
    x_adv = attack_in_tiles(outwards, MODEL, x, np.zeros(10, np.int32), key=KEY, rows=10)
    assert_valid(x_adv)
    assert (x_adv[:, 5] == np.minimum(x[:, 5] + 2, 3)).all()
    # one without epsilon promises nothing
    assert move_to_valid_points(x + 10, x, SimpleNamespace()).max() > 9


# Rounding


@pytest.mark.slow
@pytest.mark.parametrize(
    "bounds, x",
    [
        ((0, 1), [0.5, 1 + 2.3e-16]),
        ((0, 1), [-1e-17, 0.5]),
        ((-1, 1), [-1 - 3e-16, 0.5]),
        ((0, 255), [3.0, 255 + 3e-14]),
        ((0, np.inf), [[3.0, -4e-16], [3.0, 2.0]]),
        (([0, -5], [1e-3, 5]), [1e-3 + 3e-19, -5 - 9e-16]),
        ((0, 1), np.array([-1e-9, 1 + 1.2e-7], np.float32)),
        (Box(0, 9, integers=[0]), [3 + 5e-16, 9 + 2e-15]),
        (Box(0, 1, one_hot=[[0, 1]]), [1 - 1e-16, 1e-17]),
        (Box(0, 1, mask=[True, False]), [1 + 2e-16, 700]),
    ],
)
def test_data_that_rounding_has_put_outside_are_attacked_from_the_bounds(bounds, x):
    x = np.atleast_2d(np.asarray(x))
    model = jax.tree_util.Partial(lambda z: jnp.stack([z.sum(1), -z.sum(1)], 1))
    with enable_x64(x.dtype == np.float64):
        found = attack_in_tiles(PGD(2.0, bounds=bounds), model, x, np.zeros(len(x), int), key=KEY, rows=1)
    low, high = bounds
    free = np.array(getattr(bounds, "mask", None) or [True, True])
    assert ((found >= low) & (found <= high))[:, free].all()
    discrete = list(getattr(bounds, "discrete", ()))
    assert (found[:, discrete] == np.rint(found[:, discrete])).all()
    assert (found[:, ~free] == x[:, ~free]).all() and not np.array_equal(found, x)


@pytest.mark.parametrize(
    "bounds, x",
    [
        ((0, 1), [0.5, 1 + 1e-6]),
        ((0, 1), np.array([-1e-4, 0.5], np.float32)),
        (([0, 0], [1, 1e-3]), [0.5, 1e-3 + 1e-8]),
        (Box(0, 9, integers=[0]), [3 + 1e-6, 9]),
        (Box(0, 1, one_hot=[[0, 1]]), [0.999, 1e-3]),
        ((0, 1), [0.5, 1000.0]),
    ],
)
def test_what_is_outside_by_more_than_rounding_is_refused(bounds, x):
    with pytest.raises(ValueError, match="attack"):
        admitted(PGD(0.1, bounds=bounds), np.atleast_2d(np.asarray(x)))
