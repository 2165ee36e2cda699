"""The README's example runs as written, and what the README and the site's first page name is there."""

import ast
import importlib
import inspect
import re
import tomllib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import sklearn.model_selection

import ntkrobust_sk

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
START = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
TABLE = START.split("## What there is")[1].split("## Conventions")[0]

# What may follow the example: predictions of every kind, and a search for the most robust alpha.
AFTERWARDS = """
from sklearn.model_selection import GridSearchCV
from ntkrobust_sk import make_robust_scorer
machine.predict(X[1400:]), machine.predict_proba(X[1400:])
search = GridSearchCV(EmpiricalNTKClassifier(FrozenEstimator(trainer)), {"alpha": [1e-3, 1e-1, 10.0]},
                      scoring={"clean": "accuracy", "robust": make_robust_scorer(attack)}, refit="robust", cv=3)
search.fit(X[:200], y[:200])
trainer.score(X[1400:], y[1400:])
"""


def run_as_in_a_notebook(source):
    """The names that the source leaves, and the values of its bare expressions."""
    names, shown = {}, []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Expr):
            shown.append(eval(compile(ast.Expression(node.value), "README.md", "eval"), names))
        else:
            exec(compile(ast.Module([node], []), "README.md", "exec"), names)
    return names, shown


def what_the_example_gives():
    names, shown = run_as_in_a_notebook(EXAMPLE + AFTERWARDS)
    return shown, np.asarray(names["K"], float), vars(names["search"])


@pytest.mark.slow
def test_the_example_runs_as_written(monkeypatch):
    # as a user runs it: the tests' compiler settings make short programs sooner and long ones slower
    monkeypatch.delenv("XLA_FLAGS")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        shown, K, search = process.submit(what_the_example_gives).result()
    robust, (kernel_clean, kernel_robust), (labels, probabilities), _, clean = shown
    assert K.shape == (200, 200)
    np.testing.assert_array_equal(K, K.T)
    eigenvalues = np.linalg.eigvalsh(K)
    assert eigenvalues[0] >= -1e-5 * eigenvalues[-1] and eigenvalues[-1] > 0
    for robust_score, clean_score in ((robust, clean), (kernel_robust, kernel_clean)):
        assert 0.3 < robust_score < clean_score <= 1
    assert labels.shape == (397,) and probabilities.shape == (397, 10)
    assert set(search["best_params_"]) == {"alpha"}
    assert search["best_score_"] == search["cv_results_"]["mean_test_robust"].max()


def test_the_example_imports_public_names_only():
    imports = [node for node in ast.walk(ast.parse(EXAMPLE)) if isinstance(node, ast.ImportFrom)]
    ours = [alias.name for node in imports if node.module == "ntkrobust_sk" for alias in node.names]
    assert ours and set(ours) <= set(ntkrobust_sk.__all__)


# `kernel(model, x1, x2)` is what a user writes, not what the library has; a link may name the package
PACKAGE = re.compile(r"^~?(sklearn\.model_selection|ntkrobust_sk)\.(?!testing$)")
CODE = [PACKAGE.sub("", code) for code in re.findall(r"`([^`]+)`", TABLE) if not code.startswith("kernel(")]


@pytest.mark.parametrize("code", CODE)
def test_what_the_table_names_exists(code):
    if code.startswith("ntkrobust_sk."):
        assert importlib.import_module(code)
        return
    expression = ast.parse(code.replace("(...)", "()"), mode="eval").body
    name = (expression.func if isinstance(expression, ast.Call) else expression).id
    if name in sklearn.model_selection.__all__:
        return
    assert name in ntkrobust_sk.__all__
    if isinstance(expression, ast.Call):
        parameters = inspect.signature(getattr(ntkrobust_sk, name)).parameters
        assert {keyword.arg for keyword in expression.keywords} <= set(parameters)


def test_the_conventions_are_those_of_the_code():
    assert "`bounds=(0, 1)` unless" in " ".join(START.split())
    assert ntkrobust_sk.PGD(0.1).bounds == ntkrobust_sk.FGSM(0.1).bounds == (0, 1)
    assert "ntkrobust_sk.testing" in CODE and "TraceNTK" in CODE


LINKS = re.findall(r"\]\(((?!http)[^)#]+)\)", README)


@pytest.mark.parametrize("link", LINKS)
def test_what_the_readme_links_to_is_there(link):
    assert (ROOT / link).is_file()


def test_the_picture_is_small():
    assert (ROOT / "docs/_static/readme.png").stat().st_size <= 60_000
    assert "docs/_static/readme.png" in LINKS


def test_every_target_of_the_readme_is_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^\$ make (\w+)", README, re.MULTILINE)
    assert {"demo", "test", "docs"} <= set(targets)
    assert all(f"\n{target}:" in makefile for target in targets)


def test_the_extras_of_the_first_page_are_those_of_the_package():
    table = START.split("| extra |")[1].split("\n\n")[0]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(extras) - {"dev", "docs"}
    assert set(re.search(r"\[([\w,]+)\]\"", README)[1].split(",")) <= set(extras)
