"""Checks of an evaluation: masked defences are caught, an honest model passes."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from sklearn.datasets import load_digits, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier

from ntkrobust_sk import FGSM, PGD, Box, Clean, Square, as_model, check_evaluation, robustness_report
from ntkrobust_sk.robustness.sanity_checks import Check, Checks

X, Y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
TRAINING, TEST = slice(0, 600), slice(600, 700)
ATTACK = PGD(0.1)
QUERIES = 200
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
NAMES = {
    "deterministic": "the model is deterministic",
    "inside": "adversarial examples lie in ball and bounds",
    "rises": "accuracy does not rise with epsilon",
    "steps": "more steps do not help the defender",
    "converged": "the attack has converged",
    "noise": "the attack beats random noise",
    "unbounded": "nothing stands without a limit to epsilon",
    "zero": "gradients are not zero",
    "slopes": "gradients are the slopes of the scores",
    "black box": "an attack without gradients breaks no more",
}


@pytest.fixture(scope="module")
def network():
    classifier = MLPClassifier((16,), alpha=0.3, max_iter=60, random_state=0, learning_rate_init=0.01)
    return as_model(classifier.fit(X[TRAINING], Y[TRAINING]))


def defended(network, *, rounds=False, straight=False, scale=1.0):
    """The network behind a defence; of one structure, so that all are compiled once."""
    return Partial(_defended, network, rounds, straight, scale)


def _defended(network, rounds, straight, scale, x):
    levels = jnp.round(x * 4) / 4
    seen = jnp.where(rounds, levels, x)
    # rounding forwards, the identity backwards
    seen = jnp.where(straight, x + jax.lax.stop_gradient(levels - x), seen)
    return scale * network(seen)


def checked(model, attack=ATTACK, **options):
    return check_evaluation(model, X[TEST], Y[TEST], attack, n_queries=QUERIES, **options)


@pytest.mark.slow
def test_an_honest_network_passes_every_check(network):
    checks = checked(defended(network))
    assert [check.name for check in checks] == list(NAMES.values())
    assert checks.passed and checks.failed == (), str(checks)


@pytest.mark.slow
def test_rounding_before_the_network_is_caught_where_pgd_reports_it_robust(network):
    model = defended(network, rounds=True)
    report = robustness_report(model, X[TEST], Y[TEST], ATTACK.epsilon, attacks=ATTACK)
    assert report.clean_accuracy > 0.9 and report.accuracies[0, 0] > report.clean_accuracy - 0.03
    failed = checked(model).failed
    assert {NAMES["zero"], NAMES["unbounded"], NAMES["noise"], NAMES["black box"]} <= set(failed)


@pytest.mark.slow
def test_gradients_that_are_made_up_are_caught(network):
    failed = checked(defended(network, straight=True)).failed
    assert NAMES["slopes"] in failed and NAMES["zero"] not in failed


@pytest.mark.slow
def test_a_loss_that_is_flat_where_the_network_is_sure_is_caught_though_gradients_of_log_odds_see_through(network):
    failed = checked(defended(network, scale=300.0)).failed
    assert NAMES["zero"] in failed and NAMES["black box"] not in failed


@pytest.mark.slow
def test_an_attack_of_too_few_steps_is_caught(network):
    checks = checked(defended(network), PGD(0.2, n_steps=1, step_size=0.02, random_start=False))
    assert NAMES["converged"] in checks.failed and NAMES["zero"] not in checks.failed
    single = checked(defended(network), FGSM(0.2))
    assert NAMES["deterministic"] not in single.failed and NAMES["inside"] not in single.failed


@pytest.mark.slow
def test_a_model_that_draws_lots_is_caught():
    random = np.random.default_rng(0)

    def model(x):
        return x[:, :2] + random.normal(size=2)

    checks = check_evaluation(model, X[:20], np.zeros(20, int), PGD(0.1, n_steps=2), n_queries=2)
    assert NAMES["deterministic"] in checks.failed


@pytest.mark.slow
def test_where_features_are_fixed_something_may_stand_without_a_limit():
    model = Partial(lambda x: jnp.stack([x[:, 0] + x[:, 1] - 9, 9 - x[:, 0] - x[:, 1]], axis=1))
    rows = np.random.default_rng(0).integers(0, 11, size=(40, 2)).astype(float)
    labels = (rows.sum(1) < 9).astype(int)
    box = Box(0, 10, mask=[True, False], integers=[0])
    checks = check_evaluation(model, rows, labels, PGD(3.0, n_steps=5, bounds=box), n_queries=5)
    assert checks.passed and NAMES["unbounded"] not in [check.name for check in checks], str(checks)


@dataclass(frozen=True)
class Leaving:
    """Goes where it should not."""

    epsilon: float
    norm: str = "linf"
    bounds: tuple | None = (0.0, 1.0)

    def in_tiles(self, model, X, y, *, key, rows):
        return X + np.float32(2 * self.epsilon)

    def __call__(self, model, x, y, *, key):
        return x


@pytest.mark.slow
def test_examples_outside_of_ball_and_bounds_are_caught(network):
    checks = {check.name: check for check in checked(defended(network), Leaving(0.1))}
    check = checks[NAMES["inside"]]
    assert not check.passed and "0.2 of 0.1; 100 of 100 are not inside" in check.detail


@pytest.mark.slow
def test_what_has_no_gradients_is_checked_without_them():
    rows, labels = load_iris(return_X_y=True)
    rows, labels = rows[::3] / 8, labels[::3]
    forest = RandomForestClassifier(3, random_state=0).fit(rows, labels)
    checks = check_evaluation(forest, rows, labels, Square(0.05, 5))
    needless = (NAMES["zero"], NAMES["slopes"], NAMES["black box"])
    assert [check.name for check in checks] == [name for name in NAMES.values() if name not in needless]


def test_checks_are_printed_one_in_a_line():
    checks = Checks((Check("this", True, "so"), Check("that", False, "not so")))
    assert str(checks) == "ok    this: so\nFAIL  that: not so"
    assert not checks.passed and checks.failed == ("that",)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"estimator": Ridge().fit(X[:50], Y[:50])}, TypeError, "Ridge is a regressor"),
        ({"attack": Clean()}, TypeError, "needs an attack in a ball"),
        ({"n_queries": 0.5}, ValueError, "n_queries must be a positive integer"),
        ({"attack": PGD}, TypeError, "an attack is needed"),
        ({"attack": "pgd"}, TypeError, "an attack is needed"),
        ({"confidence": 0.3}, ValueError, "confidence must be a finite number > 0.5 and < 1"),
        ({"X": X[:50] + 3}, ValueError, "the attack's bounds are"),
    ],
)
def test_what_is_wrong_is_named(change, error, message):
    fitted = LogisticRegression(max_iter=10).fit(X[:50], Y[:50])
    given = {"estimator": fitted, "X": X[:50], "y": Y[:50], "attack": ATTACK} | change
    with pytest.raises(error, match=message):
        check_evaluation(**given)
