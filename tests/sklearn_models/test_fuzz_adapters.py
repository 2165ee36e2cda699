"""Random pipelines with random parameters and edits: a sample of examples/fuzz_adapters.py."""

import importlib.util
from pathlib import Path

import pytest
from jax.tree_util import Partial

from ntkrobust_sk import sklearn_models


@pytest.fixture(scope="module")
def fuzz():
    path = Path(__file__).parents[2] / "examples" / "fuzz_adapters.py"
    spec = importlib.util.spec_from_file_location("fuzz_adapters", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_no_model_of_a_random_pipeline_differs_without_a_word(fuzz):
    counts = fuzz.run(range(10_000, 10_050))
    assert counts["DIFFERS"] == 0
    assert counts["agrees"] >= 37 and counts["refused"] <= 7, counts


@pytest.mark.slow
def test_what_was_not_changed_is_not_refused(fuzz, monkeypatch):
    monkeypatch.setattr(fuzz, "changed", lambda estimator, random: "")
    counts = fuzz.run(range(20_000, 20_030))
    assert counts["refused"] == 0 and counts["agrees"] >= 20, counts


@pytest.mark.slow
def test_the_fuzzer_finds_an_adapter_that_forgets_a_parameter_and_the_guard_refuses_it(fuzz, monkeypatch):
    def forgetful(estimator):
        return Partial(sklearn_models.transformers._shifted, fuzz.np.zeros(1), fuzz.np.ones(1))

    def scaled(random):
        return fuzz.preprocessing.StandardScaler(with_mean=bool(random.integers(2)), with_std=False)

    monkeypatch.setattr(fuzz, "composed", scaled)
    monkeypatch.setattr(fuzz, "changed", lambda estimator, random: "")
    monkeypatch.setitem(sklearn_models.ADAPTERS, "StandardScaler", forgetful)
    seeds = range(30_000, 30_012)
    guarded = fuzz.run(seeds)
    assert guarded["DIFFERS"] == 0 and guarded["refused"] > 0
    monkeypatch.setattr(sklearn_models.conversion, "check_agreement", lambda *given: None)
    assert fuzz.run(seeds)["DIFFERS"] > 0
