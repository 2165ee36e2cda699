"""Each parameter of each scikit-learn class that has an adapter is read, irrelevant or refused, as listed."""

import importlib.util
import sys
from pathlib import Path

import pytest
from jax.tree_util import Partial
from sklearn.preprocessing import StandardScaler

from ntkrobust_sk import sklearn_models

SPEC = importlib.util.spec_from_file_location(
    "table_of_adapters", Path(__file__).parents[2] / "examples" / "table_of_adapters.py"
)
table = importlib.util.module_from_spec(SPEC)
sys.modules["table_of_adapters"] = table  # dataclasses look there
SPEC.loader.exec_module(table)


@pytest.mark.slow
@pytest.mark.parametrize("name", table.adapted_classes())
def test_every_parameter_is_read_irrelevant_or_refused_as_it_is_listed(name):
    verdicts = table.verdicts_on(table.adapted_classes()[name])
    assert [verdict.fault for verdict in verdicts if verdict.fault] == []
    known = {verdict.parameter for verdict in verdicts}
    assert known >= set(table.adapted_classes()[name]._get_param_names())


def test_a_new_parameter_of_scikit_learn_is_a_fault_until_somebody_lists_it():
    class Newer(StandardScaler):
        _parameter_constraints = StandardScaler._parameter_constraints | {"with_flips": ["boolean"]}

        def __init__(self, *, copy=True, with_mean=True, with_std=True, with_flips=False):
            super().__init__(copy=copy, with_mean=with_mean, with_std=with_std)
            self.with_flips = with_flips

    Newer.__name__, Newer.__module__ = "StandardScaler", "sklearn.preprocessing"
    faults = [verdict.fault for verdict in table.verdicts_on(Newer) if verdict.fault]
    assert len(faults) == 1 and "nobody has looked at this parameter" in faults[0] and "with_flips" in faults[0]


def test_a_parameter_that_is_listed_as_irrelevant_and_is_not_is_a_fault(monkeypatch):
    monkeypatch.setitem(table.READ, "StandardScaler", "with_std")
    monkeypatch.setitem(table.IRRELEVANT, "a wrong reason", "with_mean")
    faults = [verdict.fault for verdict in table.verdicts_on(StandardScaler) if verdict.fault]
    assert faults == ["StandardScaler(with_mean=...) is read, and listed as irrelevant"]


def test_an_adapter_that_does_not_read_a_parameter_is_a_fault_even_without_its_guard(monkeypatch):
    def forgetful(estimator):
        return Partial(sklearn_models.transformers._shifted, estimator.mean_, 1 / estimator.scale_)

    monkeypatch.setitem(sklearn_models.ADAPTERS, "StandardScaler", forgetful)
    monkeypatch.setattr(sklearn_models.conversion, "check_agreement", lambda *given: None)
    verdicts = {verdict.parameter: verdict for verdict in table.verdicts_on(StandardScaler)}
    assert "differs from the estimator for False" in verdicts["with_mean"].fault
    # and with the guard, what the adapter does not read is refused
    monkeypatch.undo()
    monkeypatch.setitem(sklearn_models.ADAPTERS, "StandardScaler", forgetful)
    verdicts = {verdict.parameter: verdict for verdict in table.verdicts_on(StandardScaler)}
    assert verdicts["with_mean"].says == "refused" and not verdicts["with_mean"].wrong


def test_a_parameter_of_which_no_value_could_be_tried_is_a_fault():
    assert "no value could be tried" in table.Verdict("SVC", "C").fault
