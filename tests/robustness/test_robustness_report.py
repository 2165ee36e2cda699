"""Evaluation: several attacks and radii at once, intervals, distances, transfer."""

from dataclasses import dataclass, replace
from html.parser import HTMLParser
from importlib.util import find_spec

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from jax.tree_util import Partial
from scipy.stats import binomtest
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ntkrobust_sk import (
    MLP,
    NFGSM,
    PGD,
    AdversarialKernelTrainer,
    AutoAttack,
    Box,
    Clean,
    EmpiricalNTKClassifier,
    RobustnessReport,
    TransferDisplay,
    as_model,
    minimal_perturbations,
    robust_accuracy,
    robustness_report,
    transfer_matrix,
)
from ntkrobust_sk.attacks.autoattack import AutoAttackReport
from ntkrobust_sk.robustness import target as targets
from ntkrobust_sk.robustness.intervals import clopper_pearson

X, Y = load_iris(return_X_y=True)
X, Y = X[::2] / 8, np.array(["a", "b", "c"])[Y[::2]]
ATTACK = PGD(0.05, n_steps=5)


@pytest.fixture(scope="module")
def trainer():
    return AdversarialKernelTrainer(MLP(widths=(6,)), max_epochs=60, learning_rate=0.1, random_state=0).fit(X, Y)


@pytest.fixture(scope="module")
def linear():
    return LogisticRegression(C=100).fit(X, Y)


@pytest.fixture(scope="module")
def report(trainer):
    attacks = {"short": replace(ATTACK, n_steps=1), "long": ATTACK}
    return robustness_report(trainer, X, Y, [0.06, 0.02], attacks=attacks)


@dataclass(frozen=True)
class Recording:
    """Doubles all features where the radius is at least the first feature; tells what it was given."""

    epsilon: float
    calls: list
    norm: str = "linf"
    bounds: tuple | None = (0.0, 1.0)

    def in_tiles(self, model, X, y, *, key, rows):
        self.calls.append((self.epsilon, X[:, 0].tolist()))
        return np.where(X[:, :1] <= self.epsilon, 2 * X, X)

    def __call__(self, model, x, y, *, key):
        return x


# Several radii


@pytest.mark.slow
def test_the_accuracies_are_those_of_each_attack_by_itself(report, trainer):
    assert report.epsilons == (0.02, 0.06) and report.names == ("short", "long")
    assert report.clean_accuracy == trainer.score(X, Y)
    attacks = [ATTACK, replace(ATTACK, n_steps=1)]
    alone = [robust_accuracy(trainer, X, Y, replace(attack, epsilon=0.02)) for attack in attacks]
    np.testing.assert_allclose(report.accuracies[::-1, 0], alone)
    # what fell at the smaller radius stays down
    assert report.accuracies[1, 1] <= robust_accuracy(trainer, X, Y, replace(ATTACK, epsilon=0.06)) < alone[0]
    assert (report.worst_accuracies <= report.accuracies.min(0)).all()


@pytest.mark.slow
def test_what_has_fallen_is_not_attacked_at_larger_radii():
    rows = np.array([[0.1], [0.2], [0.3], [0.4]])
    # wrong from 0.35 on; the last is wrong as it is
    model = Partial(lambda x: jnp.concatenate([0.35 - x, 0 * x], axis=1))
    attack = Recording(1.0, [])
    found = robustness_report(model, rows, [0, 0, 0, 0], [0.3, 0.2, 0.0], attacks=attack, nearest=Exact())
    near = [(epsilon, pytest.approx(given)) for epsilon, given in [(0.2, [0.1, 0.2, 0.3]), (0.3, [0.1, 0.3])]]
    assert attack.calls == near
    assert found.fell_at.tolist() == [[np.inf, 0.2, 0.3, 0.0]]
    assert found.accuracies.tolist() == [[0.75, 0.5, 0.25]]


@dataclass(frozen=True)
class Exact:
    """The nearest points of the model of the test above, all features the same."""

    epsilon: float = 1.0
    norm: str = "linf"
    bounds: tuple | None = (0.0, 1.0)

    def __call__(self, model, x, y, *, key):
        return x

    def nearest(self, model, x, y, *, key):
        return jnp.maximum(x, 0.3501), None


@pytest.mark.slow
def test_distances_are_the_nearest_that_any_attack_has_found():
    rows, model = np.array([[0.1], [0.2], [0.4]]), Partial(lambda x: jnp.concatenate([0.35 - x, 0 * x], axis=1))
    found = robustness_report(model, rows, [0, 0, 0], 0.3, attacks=Recording(1.0, []), nearest=Exact())
    np.testing.assert_allclose(found.distances, [0.2501, 0.1501, 0], atol=1e-6)
    np.testing.assert_allclose(found.quantiles([0.3, 0.5, 1.0]), [0, 0.1501, 0.2501], atol=1e-6)


# Intervals, classes, tables


@pytest.mark.parametrize(("k", "n"), [(5, 3), (-1, 3), ([0, 4], 3), (float("nan"), 3)], ids=repr)
def test_more_successes_than_trials_have_no_interval(k, n):
    with pytest.raises(ValueError, match="successes must be 0 to n, got"):
        clopper_pearson(k, n)


@pytest.mark.parametrize("confidence", [0, 1, 2, float("nan")])
def test_an_interval_holds_with_some_probability(confidence):
    with pytest.raises(ValueError, match="confidence must be"):
        clopper_pearson(1, 3, confidence)


@pytest.mark.parametrize("k, n", [(0, 7), (3, 7), (7, 7), (180, 200)])
def test_intervals_are_clopper_and_pearson_s(k, n):
    expected = binomtest(k, n).proportion_ci(0.9, method="exact")
    np.testing.assert_allclose(clopper_pearson(k, n, 0.9), expected, atol=1e-12)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    successes = np.random.default_rng(0).binomial(30, 0.8, size=4000)
    low, high = clopper_pearson(successes, 30, 0.9)
    assert np.mean((low <= 0.8) & (high >= 0.8)) >= 0.9


@pytest.mark.slow
def test_classes_and_tables_add_up(report):
    counts = np.array([np.sum(label == Y) for label in "abc"])
    np.testing.assert_allclose(counts @ report.class_accuracies.reshape(3, -1) / len(Y), report.accuracies.ravel())
    frame = report.to_frame()
    assert (
        len(frame) == (1 + 2 * 2) * 4
        and (frame.low <= frame.accuracy).all()
        and (frame.high >= frame.accuracy).all()
    )
    row = frame.set_index(["attack", "epsilon", "class"]).loc[("long", 0.06, "all")]
    assert row.accuracy == report.accuracies[1, 1] and row.n == len(Y)
    np.testing.assert_allclose([row.low, row.high], report.intervals[1, 1])


@pytest.mark.slow
def test_the_printed_report_holds_the_numbers(report):
    text = str(report)
    cell = f"{report.accuracies[1, 0]:.3f} [{report.intervals[1, 0, 0]:.3f}, {report.intervals[1, 0, 1]:.3f}]"
    assert cell in text and f"clean accuracy {report.clean_accuracy:.3f}" in text and "75 examples" in text
    assert f"50% {np.sort(report.distances)[37]:.4g}" in text


@pytest.mark.slow
def test_flags_of_autoattack_reach_the_report():
    network = Partial(lambda x: jnp.round(x[:, :1] * 4) @ jnp.array([[1.0, -1.0]]) + jnp.array([[-1.5, 1.5]]))
    labels = (np.round(X[:, 0] * 4) < 1.5).astype(int)
    attack = AutoAttack(0.1, n_steps=2, n_queries=20)
    found = robustness_report(network, X, labels, [0.05, 0.1], attacks=attack)
    assert found.names == ("AutoAttack",) and found.clean_accuracy == 1
    assert any("zero gradients" in flag and "0.05, 0.1" in flag for flag in found.flags)
    assert "flag: AutoAttack, " in str(found)


# Any estimator


@pytest.mark.slow
def test_a_pipeline_is_evaluated_in_the_units_of_its_inputs(linear):
    scale = [1.0, 100.0, 1.0, 1.0]
    frame = pd.DataFrame(X * scale, columns=list("wxyz"))
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=100)).fit(frame, Y)
    found = robustness_report(pipeline, frame, Y, 0.05, attacks=ATTACK, bounds=None)
    attack = replace(ATTACK, bounds=None)
    assert found.accuracies[0, 0] == pytest.approx(robust_accuracy(pipeline, frame, Y, attack))
    assert found.clean_accuracy == pytest.approx(pipeline.score(frame, Y))


@pytest.mark.slow
def test_what_has_no_gradients_is_evaluated_as_a_black_box_and_a_warning_says_so(monkeypatch):
    monkeypatch.setattr(targets, "QUERIES", 60)
    forest = RandomForestClassifier(3, random_state=0).fit(X, Y)
    with pytest.warns(UserWarning, match="as a black box, by Square") as caught:
        found = robustness_report(forest, X[::3], Y[::3], [0.02, 0.05])
    assert found.names == ("Square",) and len(caught) == 1
    assert found.accuracies[0, 1] < found.clean_accuracy
    with pytest.raises(TypeError, match="minimal perturbations need gradients"):
        minimal_perturbations(forest, X, Y)


@pytest.mark.slow
def test_minimal_perturbations_of_a_linear_classifier_are_distances_to_its_planes(linear):
    scores, weights = linear.decision_function(X), linear.coef_
    own = np.array([list("abc").index(label) for label in Y])
    for norm, dual in (("linf", 1), ("l2", 2), ("l1", np.inf)):
        planes = np.array(
            [
                [
                    (scores[i, own[i]] - scores[i, k]) / np.linalg.norm(weights[own[i]] - weights[k], dual)
                    for k in range(3)
                    if k != own[i]
                ]
                for i in range(len(X))
            ]
        )
        exact = np.maximum(planes.min(1), 0)
        found = minimal_perturbations(linear, X, Y, norm=norm, bounds=None)
        # never less, and at most a hundredth more
        assert (found >= exact * (1 - 1e-9)).all() and (found <= 1.01 * exact).all()


@pytest.mark.slow
def test_distances_are_those_to_values_that_features_may_have():
    rows, box = np.array([[2.0, 1.0], [8.0, 1.0]]), Box(0, 10, mask=[True, False], integers=[0])
    model = Partial(lambda x: jnp.stack([x[:, 0] - 5.6, 5.6 - x[:, 0]], axis=1))
    # the boundary is at 5.6, and the nearest integers beyond it are 6 and 5
    assert minimal_perturbations(model, rows, [1, 0], bounds=box).tolist() == [4, 3]
    found = robustness_report(model, rows, [1, 0], [2.9, 3.5], bounds=box, attacks=PGD(3, n_steps=5))
    assert found.fell_at.tolist() == [[np.inf, 3.5]] and found.distances.tolist() == [4, 3]


# Transfer


@pytest.mark.slow
def test_transfer_serves_networks_their_tangent_models_and_kernel_machines_alike(trainer, linear):
    kwargs = {"solver": "sgd", "max_epochs": 3, "random_state": 0}
    frozen = FrozenEstimator(trainer)
    models = {
        "network": trainer,
        "linearised": EmpiricalNTKClassifier(frozen, dynamics="linearized", **kwargs).fit(X, Y),
        "centred": EmpiricalNTKClassifier(frozen, dynamics="centered", **kwargs).fit(X, Y),
        "kernel": EmpiricalNTKClassifier(frozen, alpha=1e-3).fit(X, Y),
        "model": trainer.model_,
        "scikit-learn": linear,
    }
    found = transfer_matrix(models, X, Y, ATTACK)
    expected = [robust_accuracy(e, X, Y, ATTACK) for name, e in models.items() if name != "model"]
    own = np.diag(found.matrix)
    np.testing.assert_allclose(own[[0, 1, 2, 3, 5]], expected)
    np.testing.assert_allclose(found.clean[3], models["kernel"].score(X, Y))
    # a bare model is the estimator that holds it
    np.testing.assert_array_equal(found.matrix[4], found.matrix[0])
    display = TransferDisplay.from_estimators(models, X, Y, ATTACK)
    np.testing.assert_array_equal(display.matrix, found.matrix)
    assert display.names == list(models)
    plt.close("all")


@pytest.mark.slow
def test_transfer_from_and_to_an_infinitely_wide_network(linear):
    if find_spec("neural_tangents") is None or find_spec("frozendict") is None:
        pytest.skip("needs: pip install --no-deps neural-tangents==0.6.5 frozendict")
    from ntkrobust_sk.kernels.neural_tangents_bridge import import_neural_tangents

    stax = import_neural_tangents().stax
    _, _, kernel_fn = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))

    def kernel(x, z):
        return kernel_fn(x, z, "ntk")

    rows = X.astype(np.float32)
    machine = KernelRidge(alpha=1e-3, kernel="precomputed").fit(
        np.asarray(kernel(rows, rows)), np.eye(3)[_numbers(Y)]
    )
    wide = as_model(machine, kernel=kernel, X_fit=rows)
    found = transfer_matrix({"wide": wide, "linear": linear}, X, Y, ATTACK)
    answers = np.asarray(kernel(rows, rows)) @ machine.dual_coef_
    assert found.clean[0] == np.mean(answers.argmax(1) == _numbers(Y)) > 0.9
    assert found.matrix[0, 0] < found.clean[0] and found.matrix[0, 1] < found.clean[1]


def _numbers(labels):
    return np.searchsorted(["a", "b", "c"], labels)


HOSTILE = "<script>alert('x')</script>&\"'"


def hostile_report():
    return RobustnessReport(
        epsilons=(0.1, 0.2),
        norm="linf",
        names=(HOSTILE, "PGD"),
        classes=np.array([HOSTILE, "b"]),
        y=np.array([0, 0, 1, 1]),
        fell_at=np.array([[0.0, 0.2, np.inf, np.inf], [0.0, 0.2, 0.1, np.inf]]),
        distances=np.array([0.0, 0.15, 0.05, np.inf]),
        flags=(HOSTILE,),
        confidence=0.95,
    )


def texts_of(markup):
    """The texts of a piece of HTML, and the names of its elements."""
    texts, tags, parser = [], set(), HTMLParser()
    parser.handle_data = texts.append
    parser.handle_starttag = lambda tag, attributes: tags.add(tag)
    parser.feed(markup)
    return [text.strip() for text in texts if text.strip()], tags


def test_a_report_in_a_notebook_says_what_it_prints_and_names_cannot_be_code():
    report = hostile_report()
    texts, tags = texts_of(report._repr_html_())
    assert tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"}
    printed = str(report)
    for cell in texts:
        assert all(part in printed for part in cell.split("; "))
    assert HOSTILE in texts and f"flag: {HOSTILE}" in texts
    assert any(cell == f"worst class at epsilon 0.2: {HOSTILE} with 0.000" for cell in texts)


def test_an_autoattack_report_in_a_notebook_says_what_each_member_did_and_names_cannot_be_code():
    report = AutoAttackReport(np.zeros((4, 2)), np.array([0, 1, -1, 2]), ("clean", HOSTILE, "square"), (HOSTILE,))
    texts, tags = texts_of(report._repr_html_())
    assert tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"}
    assert texts[:1] == ["AutoAttack on 4 examples: robust accuracy 0.250"] and texts[-1] == f"flag: {HOSTILE}"
    assert texts[3:-1] == ["clean", "1", "0.750", f"after {HOSTILE}", "1", "0.500", "after square", "1", "0.250"]


def test_an_autoattack_report_prints_as_a_table_without_its_arrays():
    found = np.zeros((4, 200)), np.array([0, 1, -1, 2]), ("clean", "apgd-ce", "square")
    report = AutoAttackReport(*found, ("randomness: odd",))
    lines = str(report).splitlines()
    assert lines[0] == "AutoAttack on 4 examples: robust accuracy 0.250" and lines[-1] == "flag: randomness: odd"
    assert [line.split() for line in lines[3:-1]] == [
        ["clean", "1", "0.750"],
        ["after", "apgd-ce", "1", "0.500"],
        ["after", "square", "1", "0.250"],
    ]
    assert repr(report) == "<AutoAttackReport: AutoAttack on 4 examples: robust accuracy 0.250, 1 flags>"
    assert "flag" not in repr(AutoAttackReport(*found, ()))


def test_a_report_is_drawn_with_its_intervals_and_with_keywords_of_style():
    report = hostile_report()
    ax = report.plot(line_kw={"lw": 4})
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [0.75, *report.accuracies[1]])
    np.testing.assert_allclose(ax.lines[2].get_ydata(), [0.75, *report.worst_accuracies])
    assert {line.get_linewidth() for line in ax.lines} == {4}
    band = ax.collections[1].get_paths()[0].vertices
    assert [report.intervals[1, 1].min(), report.intervals[1, 1].max()] == pytest.approx(
        [band[band[:, 0] == 0.2, 1].min(), band[band[:, 0] == 0.2, 1].max()]
    )
    assert report.plot(ax) is ax
    with pytest.raises(TypeError, match="line_kw: matplotlib's Line2D has no 'widht'"):
        report.plot(line_kw={"widht": 4})


def test_an_autoattack_report_is_drawn_as_bars_and_says_that_there_are_flags():
    found = np.zeros((4, 2)), np.array([0, 1, -1, 2]), ("clean", "apgd", "square")
    ax = AutoAttackReport(*found, ()).plot(bar_kw={"alpha": 0.5})
    assert [bar.get_height() for bar in ax.patches] == [0.75, 0.5, 0.25] and ax.patches[0].get_alpha() == 0.5
    assert [label.get_text() for label in ax.get_xticklabels()] == ["clean", "after apgd", "after square"]
    assert ax.get_title() == "" and "not to be trusted" in AutoAttackReport(*found, ("odd",)).plot().get_title()
    with pytest.raises(TypeError, match="bar_kw must be a dict"):
        AutoAttackReport(*found, ()).plot(bar_kw="red")


# Bad input


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"estimator": Ridge().fit(X, X[:, 0])}, TypeError, "Ridge is a regressor"),
        ({"epsilons": "8/255"}, ValueError, "epsilons must be numbers in units of the data"),
        ({"epsilons": ["8/255"]}, ValueError, "each of epsilons must be a finite number"),
        ({"epsilons": []}, ValueError, "epsilons must be numbers"),
        ({"epsilons": -0.1}, ValueError, "each of epsilons must be a finite number >= 0"),
        ({"confidence": 95}, ValueError, "confidence must be a finite number > 0 and < 1"),
        ({"attacks": [ATTACK, ATTACK]}, ValueError, "attacks of one type need names"),
        ({"attacks": PGD}, TypeError, "an attack is needed, such as PGD"),
        ({"attacks": "pgd"}, TypeError, "an attack is needed, such as PGD"),
        ({"attacks": Clean()}, TypeError, "must be a dataclass with epsilon"),
        ({"attacks": lambda model, x, y: x}, TypeError, "attacks must be callable as attack"),
        ({"attacks": {}}, TypeError, "attacks must be attacks by name"),
        ({"norm": "l3"}, ValueError, "unknown norm 'l3'"),
        ({"bounds": 5}, ValueError, "bounds must be None or"),
        ({"nearest": PGD}, TypeError, "nearest: an attack is needed"),
        ({"confidence": np.array([0.9])}, ValueError, "confidence must be a finite number"),
        ({"epsilons": {0.1}}, ValueError, "epsilons must be numbers"),
        ({"epsilons": [[0.1], [0.1, 0.2]]}, ValueError, "each of epsilons must be"),
        ({"estimator": LogisticRegression}, TypeError, r"write LogisticRegression\(...\).fit\(X, y\)"),
        ({"attacks": NFGSM(0.1), "norm": "l2"}, ValueError, "NFGSM is an attack in linf"),
        ({"nearest": ATTACK, "attacks": ATTACK}, TypeError, "nearest, such as FAB"),
        ({"X": 3 * X}, ValueError, f"the attack's bounds are .* from {3 * X.min():.3g}"),
    ],
)
def test_a_report_names_what_is_wrong(linear, change, error, message):
    given = {"estimator": linear, "X": X, "y": Y, "epsilons": 0.1} | change
    with pytest.raises(error, match=message):
        robustness_report(**given)


@pytest.mark.slow
def test_transfer_names_what_is_wrong(linear):
    other = LogisticRegression().fit(X, _numbers(Y))
    with pytest.raises(ValueError, match="know different classes"):
        transfer_matrix({"one": linear, "other": other}, X, Y, ATTACK)
    with pytest.raises(TypeError, match="must be a dict from names"):
        transfer_matrix([linear], X, Y, ATTACK)
