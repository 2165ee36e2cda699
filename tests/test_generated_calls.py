"""Generated calls over the public API end well or in a clear error; examples/fuzz_calls.py makes more of them."""

import importlib.util
import inspect
import sys
from pathlib import Path

import jax
import pytest

import ntkrobust_sk

PATH = Path(__file__).parent.parent / "examples" / "fuzz_calls.py"
N_CALLS = 300


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_calls", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_calls"] = module
    spec.loader.exec_module(module)
    filtering = jax.config.jax_traceback_filtering
    # where an error was raised is read from its traceback
    jax.config.update("jax_traceback_filtering", "off")
    yield module
    jax.config.update("jax_traceback_filtering", filtering)


@pytest.fixture(scope="module")
def names(fuzz):
    return fuzz.world()


@pytest.mark.slow
def test_generated_calls_end_well_or_in_a_clear_error(fuzz, names):
    outcomes = [make() for _, _, make in fuzz.run(0, N_CALLS, names=names)]
    bad = [o for o in outcomes if o.kind in fuzz.FAULTS]
    assert not bad, "\n" + fuzz.table(bad)
    assert sum(o.kind == "clear" for o in outcomes) > N_CALLS / 2


def test_every_public_name_is_called_or_has_nothing_to_call(fuzz):
    called = " ".join(t.text for t in fuzz.templates()) + fuzz.PRELUDE
    public = [name for name in ntkrobust_sk.__all__ if not inspect.ismodule(getattr(ntkrobust_sk, name))]
    rest = {name for name in public if name not in called}
    assert rest == {
        "Clean",
        "EvolutionResult",
        "InaccurateSolveError",
        "Network",
        "RobustnessReport",
        "SavedFileError",
        "SingularGramError",
        "TrainState",
        "TrainingDivergedError",
        "TransferMatrix",
        "load_digits_images",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "body, kind",
    [
        ("lambda n: n + 1", "silent"),
        ("lambda n: 1.0 / n", "obscure"),
        ("lambda n: [1][n + 7]", "obscure"),
        ("lambda n: jnp.dot(jnp.ones(n + 3), jnp.ones(2))", "obscure"),
        ("lambda n: float('nan')", "silent"),
        ("lambda n: __import__('time').sleep(60)", "hung"),
        ("lambda n: MLP(1, activation=n)", "unnamed"),
        ("lambda n: top_mass(K, n)", "clear"),
    ],
)
def test_what_is_wrong_with_a_call_is_seen(fuzz, names, body, kind, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    argument = "k" if kind == "clear" else "chosen"
    template = fuzz.Template("planted(@)", (fuzz.Argument(argument, "integer", "1"),), "")
    planted = eval(f"lambda {argument}: ({body})({argument})", names)
    found = fuzz.outcome(template, {0: "False"}, names | {"planted": planted})
    assert found.kind == kind, found
