"""Targets, a radius for each example, threads and progress bars, wherever estimators are attacked."""

import dataclasses
import warnings

import jax
import joblib
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.optimize import minimize
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale

from ntkrobust_sk import (
    APGD,
    DDN,
    FAB,
    FGSM,
    FMN,
    PGD,
    AutoAttack,
    EmpiricalNTKClassifier,
    EmpiricalNTKRegressor,
    SigmaZero,
    Square,
    certify,
    minimal_perturbations,
    perturb,
    robust_accuracy,
    robustness_report,
)
from ntkrobust_sk.attacks import pgd
from ntkrobust_sk.attacks.norms import LENGTHS, NORMS

X, Y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])
X, LABELS = X[::5], NAMES[Y[::5]]
N = len(X)
LINEAR = LogisticRegression(max_iter=1000).fit(X, LABELS)
# of each label another class, in turn
TARGETS = NAMES[(Y[::5] + 1 + np.arange(N) % 2) % 3]
IN_BALL = [
    *(PGD(0.5, 5, norm=norm, bounds=None) for norm in NORMS),
    *(FGSM(0.5, norm=norm, bounds=None) for norm in NORMS),
    *(APGD(0.5, 8, norm=norm, bounds=None) for norm in NORMS),
    *(FAB(0.5, 5, norm=norm, bounds=None) for norm in NORMS),
    FMN(0.5, 20, bounds=None),
    DDN(0.5, 20, bounds=None),
    *(Square(0.5, 30, norm=norm, bounds=None) for norm in NORMS),
    SigmaZero(2, 10, bounds=None),
    *(AutoAttack(0.5, norm, n_steps=5, n_queries=20, bounds=None) for norm in NORMS),
]


def shown(attack):
    return f"{type(attack).__name__}-{attack.norm}"


def quietly(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **options)


# Targets


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        *(PGD(40.0, 40, norm=norm, bounds=None) for norm in NORMS),
        APGD(40.0, 30, bounds=None),
        *(FAB(40.0, 10, norm=norm, bounds=None) for norm in NORMS),
        FMN(40.0, 60, bounds=None),
        DDN(40.0, 60, bounds=None),
        Square(40.0, 300, bounds=None),
        AutoAttack(40.0, n_steps=10, n_queries=20, bounds=None),
    ],
    ids=shown,
)
def test_every_attack_drives_a_linear_model_to_the_targets_where_the_ball_holds_them(attack):
    X_adv = perturb(LINEAR, X, LABELS, attack, targets=TARGETS)
    reached = LINEAR.predict(X_adv) == TARGETS
    assert reached.mean() >= (0.8 if isinstance(attack, Square) else 1)
    stands = robust_accuracy(LINEAR, X, LABELS, attack, targets=TARGETS)
    assert stands == pytest.approx(1 - reached.mean())


def exact_distance(x, target):
    """Return the Euclidean distance from x to where LINEAR answers the target, by SciPy."""
    others = np.arange(3) != target
    A = LINEAR.coef_[target] - LINEAR.coef_[others]
    b = LINEAR.intercept_[target] - LINEAR.intercept_[others]
    inside = {"type": "ineq", "fun": lambda d: A @ (x + d) + b, "jac": lambda d: A}
    best = minimize(lambda d: d @ d, np.zeros(4), jac=lambda d: 2 * d, constraints=inside, method="SLSQP")
    assert best.success
    return np.sqrt(best.fun)


def test_distances_to_targets_are_those_to_a_polyhedron():
    wanted = [exact_distance(x, list(NAMES).index(t)) for x, t in zip(X, TARGETS, strict=True)]
    for attack in (FAB(1.0, 30, norm="l2", bounds=None), FMN(1.0, 200, norm="l2", bounds=None)):
        found = minimal_perturbations(LINEAR, X, LABELS, attack, targets=TARGETS)
        np.testing.assert_array_less(np.array(wanted) * (1 - 1e-6), found)
        np.testing.assert_allclose(found, wanted, rtol=0.05)


def test_one_target_serves_all_rows_and_targets_need_not_be_reached():
    at = LABELS != "setosa"
    one = perturb(LINEAR, X[at], LABELS[at], PGD(0.5, bounds=None), targets="setosa")
    many = perturb(LINEAR, X[at], LABELS[at], PGD(0.5, bounds=None), targets=["setosa"] * at.sum())
    np.testing.assert_array_equal(one, many)
    scores = LINEAR.decision_function
    assert (scores(one)[:, 0] > scores(X[at])[:, 0]).all()


def test_a_target_is_harder_to_reach_than_any_wrong_answer():
    attack = PGD(1.0, bounds=None)
    assert robust_accuracy(LINEAR, X, LABELS, attack, targets=TARGETS) > robust_accuracy(LINEAR, X, LABELS, attack)


def test_weights_count_in_what_stands():
    attack, weights = PGD(2.0, bounds=None), np.arange(1.0, N + 1)
    stands = LINEAR.predict(perturb(LINEAR, X, LABELS, attack, targets=TARGETS)) != TARGETS
    found = robust_accuracy(LINEAR, X, LABELS, attack, targets=TARGETS, sample_weight=weights)
    assert found == pytest.approx(np.average(stands, weights=weights))


def test_the_librarys_own_estimators_and_functions_take_targets():
    machine = EmpiricalNTKClassifier(random_state=0).fit(X, LABELS)
    attack = PGD(3.0, bounds=None)
    X_adv = machine.perturb(X, LABELS, attack, targets=TARGETS)
    stands = (machine.predict(X_adv) != TARGETS).mean()
    assert stands < 0.5
    assert machine.robust_score(X, LABELS, attack, targets=TARGETS) == pytest.approx(stands)
    numbers = LINEAR.coef_.T.astype(np.float32), LINEAR.intercept_.astype(np.float32)
    function = Partial(lambda w, b, x: x @ w + b, *numbers)
    positions = (Y[::5] + 1) % 3
    X_adv = perturb(function, X.astype(np.float32), Y[::5], PGD(40.0, 40, bounds=None), targets=positions)
    assert (np.asarray(function(X_adv)).argmax(1) == positions).all()


def test_a_black_box_takes_targets():
    neighbours = KNeighborsClassifier().fit(X, LABELS)
    attack = Square(3.0, 200, bounds=None)
    reached = neighbours.predict(quietly(perturb, neighbours, X, LABELS, attack, targets=TARGETS)) == TARGETS
    assert reached.mean() > 0.5


def test_a_report_counts_what_is_not_answered_by_its_target():
    attacks = [PGD(1.0, 10), APGD(1.0, 10)]
    report = robustness_report(LINEAR, X, LABELS, [1.0, 3.0], bounds=None, attacks=attacks, targets=TARGETS)
    assert report.clean_accuracy == np.mean(LINEAR.predict(X) != TARGETS)
    for name, attack in zip(report.names, attacks, strict=True):
        first = dataclasses.replace(attack, bounds=None)
        row = report.accuracies[report.names.index(name), 0]
        assert row == robust_accuracy(LINEAR, X, LABELS, first, targets=TARGETS)
    assert (report.distances[report.fell_at.min(0) <= 1.0] <= 1.0).all()


DIABETES, PROGRESSION = load_diabetes(return_X_y=True)
DIABETES = scale(DIABETES)[:40]
PROGRESSION = PROGRESSION[:40]


def test_a_regressor_is_pulled_towards_values():
    ridge = Ridge().fit(DIABETES, PROGRESSION)
    before, epsilon = ridge.predict(DIABETES), 0.05
    wanted = before + 1000.0
    pulled = ridge.predict(perturb(ridge, DIABETES, PROGRESSION, FGSM(epsilon, bounds=None), targets=wanted))
    # of a linear function all of its slope is spent
    np.testing.assert_allclose(pulled - before, epsilon * np.abs(ridge.coef_).sum(), rtol=1e-6)
    near = before + 1.0
    reached = ridge.predict(perturb(ridge, DIABETES, PROGRESSION, PGD(epsilon, 50, bounds=None), targets=near))
    assert np.abs(reached - near).max() < 1
    machine = EmpiricalNTKRegressor(random_state=0).fit(DIABETES, PROGRESSION)
    low = machine.predict(machine.perturb(DIABETES, PROGRESSION, PGD(0.3, bounds=None), targets=0))
    assert (low < machine.predict(DIABETES)).all()
    with pytest.raises(ValueError, match="needs integer labels"):
        perturb(ridge, DIABETES, PROGRESSION, Square(0.1, bounds=None), targets=0)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (LABELS, r"targets must not be the labels themselves, but 30 of 30 are \(first: row 0, 'setosa'\)"),
        ("virginica", r"10 of 30 are \(first: row 20, 'virginica'\)"),
        ("iris", "targets contains labels that were not seen in fit: \\['iris'\\]"),
        (1, "targets contains labels that were not seen in fit: \\[1\\]"),
        (TARGETS[:3], r"targets must hold one label for each of the 30 samples of X, got shape \(3,\)"),
        (np.ma.masked_array(TARGETS), "masked array"),
        ([[1], [2, 3]], "targets must hold one label"),
    ],
)
def test_targets_that_are_none_are_named(targets, message):
    machine = EmpiricalNTKClassifier(random_state=0, max_epochs=1)
    machine.fit(X, LABELS)
    for call in (
        lambda: robust_accuracy(LINEAR, X, LABELS, PGD(0.1), targets=targets),
        lambda: machine.perturb(X, LABELS, PGD(0.1), targets=targets),
        lambda: robustness_report(LINEAR, X, LABELS, 0.1, targets=targets),
        lambda: minimal_perturbations(LINEAR, X, LABELS, targets=targets),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()


@pytest.mark.parametrize(
    ("targets", "message"),
    [([1.0, 2.0], r"one value for each of y, \(40, 1\), got shape \(2,\)"), (np.nan, "targets"), ("a", "targets")],
)
def test_target_values_that_are_none_are_named(targets, message):
    ridge = Ridge().fit(DIABETES, PROGRESSION)
    with pytest.raises((ValueError, TypeError), match=message):
        perturb(ridge, DIABETES, PROGRESSION, PGD(0.1, bounds=None), targets=targets)


def test_an_attack_of_ones_own_takes_targets_unless_it_takes_rows_apart():
    def uphill(model, x, y, *, key):
        return x + 0.1 * jax.grad(lambda z: (model(z)[:, 1] - model(z)[:, 0]).sum())(x)

    def apart(model, x, y, *, key):
        return x + 0 * model(x[:3]).sum()

    scores = LINEAR.decision_function(perturb(LINEAR, X, LABELS, uphill, targets=TARGETS))
    at = np.arange(N), [list(NAMES).index(target) for target in TARGETS]
    assert (scores[at] > LINEAR.decision_function(X)[at]).all()
    with pytest.raises(ValueError, match=r"asks the model for all .* rows of its tile at once.* asked for 3"):
        perturb(LINEAR, X, LABELS, apart, targets=TARGETS)


# A radius for each example


@pytest.mark.slow
@pytest.mark.parametrize("attack", IN_BALL, ids=shown)
def test_each_row_stays_within_its_own_ball(attack):
    largest = 3.0 if attack.norm == "l0" else 1.0
    epsilon = np.linspace(0, largest, N)
    X_adv = quietly(perturb, LINEAR, X, LABELS, attack, epsilon=epsilon)
    lengths = np.linalg.norm(X_adv - X, LENGTHS[attack.norm].order, axis=1)
    assert (lengths <= epsilon).all()
    np.testing.assert_array_equal(X_adv[0], X[0])
    if type(attack) in (PGD, FGSM, APGD):
        # where there is nothing to be found, an ascent goes to the end of the ball
        assert (lengths >= epsilon / 2)[LINEAR.predict(X_adv) == LABELS].all()


@pytest.mark.slow
@pytest.mark.parametrize("attack", IN_BALL, ids=shown)
def test_equal_radii_are_those_of_the_attack(attack):
    one = quietly(perturb, LINEAR, X, LABELS, attack)
    each = quietly(perturb, LINEAR, X, LABELS, attack, epsilon=np.full(N, attack.epsilon))
    np.testing.assert_array_equal(one, each)
    other = dataclasses.replace(attack, epsilon=attack.epsilon / 2 if attack.norm != "l0" else 0)
    np.testing.assert_array_equal(one, quietly(perturb, LINEAR, X, LABELS, other, epsilon=attack.epsilon))


def test_a_row_does_not_depend_on_the_radii_of_others():
    epsilon = np.linspace(0.1, 1, N)
    reversed_ = np.where(np.arange(N) == 3, epsilon, epsilon[::-1])
    first, second = (perturb(LINEAR, X, LABELS, PGD(9.0, bounds=None), epsilon=e) for e in (epsilon, reversed_))
    np.testing.assert_array_equal(first[3], second[3])


def test_more_room_breaks_more():
    attack = PGD(1.0, bounds=None)
    at = np.arange(N) % 2 == 0
    found = robust_accuracy(LINEAR, X, LABELS, attack, epsilon=np.where(at, 0.0, 5.0))
    halves = robust_accuracy(LINEAR, X[~at], LABELS[~at], attack, epsilon=5.0)
    clean = LINEAR.score(X[at], LABELS[at])
    assert found == pytest.approx((at.sum() * clean + (~at).sum() * halves) / N)


def test_targets_and_radii_go_together_on_the_librarys_own_estimators():
    machine = EmpiricalNTKClassifier(random_state=0).fit(X, LABELS)
    epsilon = np.linspace(0, 3, N)
    X_adv = machine.perturb(X, LABELS, PGD(1.0, bounds=None), targets=TARGETS, epsilon=epsilon)
    # the machine sees single precision
    assert (np.abs(X_adv.astype(float) - X.astype(np.float32)).max(1) <= epsilon).all()
    score = machine.robust_score(X, LABELS, PGD(1.0, bounds=None), targets=TARGETS, epsilon=epsilon)
    assert score == pytest.approx((machine.predict(X_adv) != TARGETS).mean())


def test_other_radii_and_targets_compile_nothing():
    def attacked(epsilon, targets):
        perturb(LINEAR, X, LABELS, PGD(1.0, bounds=None), epsilon=epsilon, targets=targets)

    attacked(np.linspace(0, 1, N), TARGETS)
    compiled = pgd._step._cache_size()
    others = [next(name for name in NAMES if name not in pair) for pair in zip(LABELS, TARGETS, strict=True)]
    attacked(np.linspace(0.3, 0.7, N), others)
    assert pgd._step._cache_size() == compiled


@pytest.mark.parametrize(
    ("epsilon", "message"),
    [
        ([0.1, 0.2], r"one for each of the 30 samples of X, got shape \(2,\)"),
        (np.where(np.arange(N) == 4, -1, 0.1), r"finite numbers >= 0 .* row 4 is -1\.0"),
        (np.where(np.arange(N) == 5, np.nan, 0.1), "row 5 is nan"),
        (np.where(np.arange(N) == 5, np.inf, 0.1), "row 5 is inf"),
        (-1, "epsilon must be a finite number >= 0"),
        ("wide", "epsilon"),
        (np.ones((N, 2)), r"got shape \(30, 2\)"),
    ],
)
def test_radii_that_are_none_are_named(epsilon, message):
    for call in (perturb, robust_accuracy):
        with pytest.raises((ValueError, TypeError), match=message):
            call(LINEAR, X, LABELS, PGD(0.1), epsilon=epsilon)


def test_an_attack_without_a_ball_has_no_radii():
    def still(model, x, y, *, key):
        return x

    with pytest.raises(TypeError, match="epsilon for each example needs an attack of this library in a ball"):
        perturb(LINEAR, X, LABELS, still, epsilon=np.ones(N))


class OwnWay:
    """An attack that goes through the tiles by itself, and knows of no options."""

    needs_gradients = False

    def __call__(self, model, x, y, *, key):
        return x

    def in_tiles(self, model, X, y, *, key, rows):
        return X


def test_an_attack_that_goes_its_own_way_says_what_it_takes():
    np.testing.assert_array_equal(perturb(LINEAR, X, LABELS, OwnWay(), n_jobs=2), X)
    for options in ({"targets": TARGETS}, {"epsilon": np.ones(N)}):
        with pytest.raises(TypeError, match=r"OwnWay.*takes neither targets nor epsilon for each example"):
            perturb(LINEAR, X, LABELS, OwnWay(), **options)


# Threads and progress bars


MANY, MANY_LABELS = np.concatenate([X + 0.01 * i for i in range(15)]), np.tile(LABELS, 15)


@pytest.mark.parametrize(
    "attack", [PGD(0.5, 5, bounds=None), AutoAttack(0.5, n_steps=4, n_queries=10, bounds=None)], ids=shown
)
def test_threads_find_the_same_to_the_last_bit(attack):
    one = perturb(LINEAR, MANY, MANY_LABELS, attack)
    np.testing.assert_array_equal(one, perturb(LINEAR, MANY, MANY_LABELS, attack, n_jobs=2))
    with joblib.parallel_config(n_jobs=2):
        np.testing.assert_array_equal(one, perturb(LINEAR, MANY, MANY_LABELS, attack))
    scores = [robust_accuracy(LINEAR, MANY, MANY_LABELS, attack, n_jobs=n) for n in (None, 2)]
    assert scores[0] == scores[1]


def test_reports_distances_and_certificates_are_the_same_with_threads():
    given = LINEAR, MANY, MANY_LABELS
    attacks = PGD(0.5, 5)
    reports = [robustness_report(*given, [0.2, 0.5], bounds=None, attacks=attacks, n_jobs=n) for n in (1, 2)]
    np.testing.assert_array_equal(reports[0].fell_at, reports[1].fell_at)
    np.testing.assert_array_equal(reports[0].distances, reports[1].distances)
    found = [minimal_perturbations(*given, FMN(1.0, 10, bounds=None), n_jobs=n) for n in (None, 2)]
    np.testing.assert_array_equal(*found)
    certified = [certify(LINEAR, X[::5], sigma=0.25, n_samples=200, n_jobs=n) for n in (None, 2)]
    np.testing.assert_array_equal(certified[0].radii, certified[1].radii)
    np.testing.assert_array_equal(certified[0].labels, certified[1].labels)


def test_black_boxes_are_asked_by_threads_too():
    neighbours, attack = KNeighborsClassifier().fit(X, LABELS), Square(0.5, 20, bounds=None)
    found = [quietly(perturb, neighbours, MANY, MANY_LABELS, attack, n_jobs=n) for n in (None, 2)]
    np.testing.assert_array_equal(*found)


def test_errors_of_a_black_box_come_from_threads_as_they_are():
    class Broken(KNeighborsClassifier):
        asked = 0

        def predict_proba(self, X):
            self.asked += 1
            if self.asked > 5:
                raise RuntimeError("the disk is full")
            return super().predict_proba(X)

    broken = Broken().fit(X, LABELS)
    with pytest.raises(RuntimeError, match="the disk is full"):
        quietly(perturb, broken, MANY, MANY_LABELS, Square(0.5, 20, bounds=None), n_jobs=2)


def test_progress_goes_to_stderr_and_only_when_asked_for(capsys):
    attack = PGD(0.5, 2, bounds=None)
    perturb(LINEAR, MANY, MANY_LABELS, attack)
    certify(LINEAR, X[:2], sigma=0.25, n_samples=100)
    silent = capsys.readouterr()
    assert silent.out == silent.err == ""
    perturb(LINEAR, MANY, MANY_LABELS, attack, progress=True)
    minimal_perturbations(LINEAR, MANY, MANY_LABELS, FMN(1.0, 3, bounds=None), progress=True)
    certify(LINEAR, X[:2], sigma=0.25, n_samples=100, progress=True)
    said = capsys.readouterr()
    assert said.out == ""
    assert all(word in said.err for word in ("FMN", "certificates"))
    # two tiles
    assert any("PGD" in line and "/2 " in line for line in said.err.split("\r"))


@pytest.mark.parametrize("options", [{"n_jobs": 0}, {"n_jobs": 1.5}, {"progress": "yes"}])
def test_wrong_options_are_refused_before_any_work(options):
    for call in (
        lambda: perturb(LINEAR, X, LABELS, PGD(0.1), **options),
        lambda: robustness_report(LINEAR, X, LABELS, 0.1, **options),
        lambda: minimal_perturbations(LINEAR, X, LABELS, **options),
        lambda: certify(LINEAR, X, sigma=0.1, **options),
    ):
        with pytest.raises((TypeError, ValueError), match=next(iter(options))):
            call()


@pytest.mark.parametrize("shift", [0.0, 1e-7])
def test_targets_that_are_a_regressors_true_values_are_refused_with_the_first_row(shift):
    ridge = Ridge(1e-2).fit(DIABETES, PROGRESSION)
    attack = PGD(0.02, 3, bounds=None)
    for score in (robust_accuracy, perturb):
        with pytest.raises(ValueError, match=rf"targets must not be the labels.*first: row 0, {PROGRESSION[0]}"):
            score(ridge, DIABETES, PROGRESSION, attack, targets=PROGRESSION * (1 + shift))
    some = PROGRESSION + 10
    some[7] = PROGRESSION[7]
    with pytest.raises(ValueError, match=rf"1 of {len(some)} are \(first: row 7"):
        robust_accuracy(ridge, DIABETES, PROGRESSION, attack, targets=some)


def test_a_regressor_that_is_driven_nearer_to_the_truth_is_not_said_to_hide_its_gradients():
    ridge = Ridge(1e-2).fit(DIABETES, PROGRESSION)
    attack = PGD(0.02, 3, bounds=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near = robust_accuracy(ridge, DIABETES, PROGRESSION, attack, targets=PROGRESSION + 0.1)
    assert near > ridge.score(DIABETES, PROGRESSION)


@pytest.mark.parametrize("attack", [AutoAttack(0.1), Square(0.1), FMN(0.1), DDN(0.1), FAB(0.1), SigmaZero(2)])
def test_attacks_that_need_labels_say_that_they_attack_no_regressors(attack):
    ridge = Ridge(1e-2).fit(DIABETES, PROGRESSION)
    machine = EmpiricalNTKRegressor(random_state=0).fit(DIABETES[:20], PROGRESSION[:20])
    pipeline = make_pipeline(StandardScaler(), Ridge()).fit(DIABETES, PROGRESSION)
    for regressor in (ridge, pipeline, machine):
        said = f"{type(attack).__name__} attacks classifiers"
        with pytest.raises(ValueError, match=said):
            robust_accuracy(regressor, DIABETES[:20], PROGRESSION[:20], attack)
