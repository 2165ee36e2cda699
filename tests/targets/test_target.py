"""One target for whatever is attacked: what it holds, what it answers, and that nothing asks past it."""

import ast
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

import ntkrobust_sk
from ntkrobust_sk import MLP, PGD, EmpiricalNTKClassifier, EmpiricalNTKRegressor, perturb, robust_accuracy
from ntkrobust_sk.robustness.target import attackable
from ntkrobust_sk.targets import AttackTarget

PACKAGE = Path(ntkrobust_sk.__file__).parent
X, Y = load_iris(return_X_y=True)
X, Y = X[::3] / 8, np.array(["a", "b", "c"])[Y[::3]]
ATTACK = PGD(0.05, 3)
# Private names of scikit-learn, on its own estimators and on those with its callbacks, which nothing public tells.
THEIRS = {
    "_init_callback_context",
    "_preprocessor",
    "_fields",
    "_gamma",
    "_n_features_outs",
    "_response_method",
    "_score_func",
    "_transformer_to_input_indices",
}


@pytest.fixture(scope="module")
def own():
    return EmpiricalNTKClassifier(MLP(widths=(5,)), random_state=0).fit(X, Y)


def models(own):
    return {"own": own, "scikit-learn": LogisticRegression().fit(X, Y), "function": lambda x: x[:, :3]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["own", "scikit-learn", "function"])
def test_whatever_is_attacked_becomes_a_target_with_labels_as_positions(own, kind):
    labels = np.searchsorted(["a", "b", "c"], Y)
    target = attackable(models(own)[kind], X, labels if kind == "function" else Y)
    assert isinstance(target, AttackTarget) and len(target.classes) == 3
    np.testing.assert_array_equal(target.y, labels)
    np.testing.assert_allclose(target.in_original_form(target.X), X, rtol=1e-6)
    assert target.score(target.X, Y) == np.mean(target.answers(target.X) == target.y)


@pytest.mark.slow
def test_estimators_and_functions_of_the_package_attack_in_one_way(own):
    frame = pd.DataFrame(X, columns=list("abcd"))
    for fitted, inputs in ((own, X), (clone(own).fit(frame, Y), frame)):
        np.testing.assert_array_equal(fitted.perturb(inputs, Y, ATTACK), perturb(fitted, inputs, Y, ATTACK))
        expected = fitted.robust_score(inputs, Y, ATTACK)
        assert (
            robust_accuracy(fitted, inputs, Y, ATTACK)
            == expected
            == fitted.score(fitted.perturb(inputs, Y, ATTACK), Y)
        )


@pytest.mark.slow
def test_targets_of_regressors_have_no_classes_and_those_without_labels_no_labels(own):
    regressor = EmpiricalNTKRegressor(MLP(widths=(5,)), random_state=0).fit(X, X[:, 0])
    target = regressor.attack_target(X, X[:, 0])
    assert len(target.classes) == 0 and target.y.shape == (len(X), 1)
    assert own.attack_target(X, None, labelled=False).y.size == 0


def test_nothing_asks_with_hasattr_for_a_private_name_of_ours():
    asked = {
        (path.name, call.args[1].value)
        for path in PACKAGE.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("hasattr", "getattr")
        if isinstance(call.args[1], ast.Constant) and call.args[1].value.startswith("_")
    }
    assert {(file, name) for file, name in asked if not name.startswith("__") and name not in THEIRS} == set()
