"""The README's example runs as written, and what the README names is there."""

import ast
import importlib
import inspect
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import sklearn.model_selection

import ntkrobust_sk

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
TABLE = README.split("## What is in it")[1].split("Conventions")[0]


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
    names, shown = run_as_in_a_notebook(EXAMPLE)
    return shown[:2], np.asarray(names["K"], float), vars(names["search"])


@pytest.mark.slow
def test_the_example_runs_as_written(monkeypatch):
    # as a user runs it: the tests' compiler settings make short programs sooner and long ones slower
    monkeypatch.delenv("XLA_FLAGS")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        shown, K, search = process.submit(what_the_example_gives).result()
    (clean, robust), (labels, probabilities, kernel_clean, kernel_robust) = shown
    assert K.shape == (200, 200)
    np.testing.assert_array_equal(K, K.T)
    eigenvalues = np.linalg.eigvalsh(K)
    assert eigenvalues[0] >= -1e-5 * eigenvalues[-1] and eigenvalues[-1] > 0
    for robust_score, clean_score in ((robust, clean), (kernel_robust, kernel_clean)):
        assert 0.3 < robust_score < clean_score <= 1
    assert labels.shape == (300,) and probabilities.shape == (300, 10)
    assert set(search["best_params_"]) == {"alpha"}
    assert search["best_score_"] == search["cv_results_"]["mean_test_robust"].max()


def test_the_example_imports_public_names_only():
    imports = [node for node in ast.walk(ast.parse(EXAMPLE)) if isinstance(node, ast.ImportFrom)]
    ours = [alias.name for node in imports if node.module == "ntkrobust_sk" for alias in node.names]
    assert ours and set(ours) <= set(ntkrobust_sk.__all__)


# `kernel(model, x1, x2)` is what a user writes, not what the library has
CODE = [code for code in re.findall(r"`([^`]+)`", TABLE) if not code.startswith("kernel(")]


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
    assert "`bounds=(0, 1)` unless" in " ".join(README.split())
    assert ntkrobust_sk.PGD(0.1).bounds == ntkrobust_sk.FGSM(0.1).bounds == (0, 1)
    assert "ntkrobust_sk.testing" in CODE and "TraceNTK" in CODE


@pytest.mark.slow
def test_the_example_of_large_kernels_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    network = ntkrobust_sk.CNN(n_outputs=2, widths=(3,), strides=(2,))
    model = ntkrobust_sk.Model(network, network.init(jax.random.key(0), (4, 4, 1)))
    images = np.random.default_rng(0).normal(size=(9, 4, 4, 1))
    namespace = {"trainer": SimpleNamespace(model_=model), "images": images}
    exec(re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1], namespace)
    assert capsys.readouterr().out.startswith("tiles of 16 rows")
    assert (tmp_path / "K.zarr").is_dir() and len(namespace["layers"]) == 4
    np.testing.assert_allclose(
        sum(namespace["layers"].values()), ntkrobust_sk.gram("trace", model, images), rtol=1e-5
    )
