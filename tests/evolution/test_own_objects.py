"""An experiment with a network and an attack of one's own: what is run, stated in the folder, and refused."""

import json
import warnings
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk import (
    APGD,
    MLP,
    PGD,
    KernelEvolution,
    Model,
    Variables,
    from_flax,
    load_evolution,
    load_experiment,
    saved_as,
)
from ntkrobust_sk.datasets.splits import load_splits
from ntkrobust_sk.evolution.run_directory import RunDirectory, RunMismatchError
from ntkrobust_sk.evolution.states import States

pytest.importorskip("safetensors", reason="safetensors is not installed")
pytest.importorskip("zarr", reason="zarr is not installed")

SMALL = KernelEvolution(
    network="mlp",
    n_train=60,
    n_test=20,
    n_kernel=20,
    epochs=1,
    fractions=(),
    regimes=("benign", "adversarial"),
    train_steps=2,
    test_steps=2,
    stage2_from=(),
    n_features=0,
    batch_size=32,
)


@dataclass(frozen=True)
class Scaled:
    """Softmax regression on inputs times a number."""

    scale: float = 1.0
    n_outputs: Any = None

    def init(self, key, input_shape):
        return Variables(jax.random.normal(key, (int(np.prod(input_shape)), self.n_outputs)))

    def apply(self, params, state, x, *, train=False):
        return self.scale * x.reshape(len(x), -1) @ params, state


@saved_as("tests.Registered")
@dataclass(frozen=True)
class Registered(Scaled):
    pass


@dataclass(frozen=True)
class Signs:
    """Random signs, as an attack of one's own."""

    epsilon: float
    norm: str = "linf"
    bounds: tuple | None = (0.0, 1.0)

    def __call__(self, model, x, y, *, key):
        return jnp.clip(x + self.epsilon * jax.random.rademacher(key, x.shape, x.dtype), 0, 1)


def flax_with_batch_norm():
    linen = pytest.importorskip("flax.linen", reason="Flax is not installed")

    class WithBatchNorm(linen.Module):
        width: int

        @linen.compact
        def __call__(self, x, train: bool):
            x = linen.Conv(self.width, (3, 3))(x)
            x = linen.relu(linen.BatchNorm(use_running_average=not train, momentum=0.9)(x))
            return linen.Dense(10)(x.mean((1, 2)))

    return from_flax(WithBatchNorm(4))


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    return SMALL.run(tmp_path_factory.mktemp("named") / "run", progress=False)


@pytest.mark.slow
def test_objects_give_the_numbers_of_the_names_that_stand_for_them(named, tmp_path):
    own = replace(SMALL, network=MLP(), attack=PGD(0.15, n_steps=2), norm="linf", epsilon=0.15)
    assert own.run(tmp_path / "run", progress=False).results == named.results


@pytest.mark.slow
def test_the_settings_of_names_alone_are_what_they_were_before_there_were_objects(named):
    assert {"norm", "optimizer", "seeds", "memory"}.isdisjoint(RunDirectory(named.path).settings)
    assert RunDirectory(named.path).settings["network"] == "mlp"


@pytest.mark.slow
def test_a_flax_network_with_batch_norm_and_its_own_attack_goes_end_to_end_and_on_again(tmp_path):
    network, attack = flax_with_batch_norm(), Signs(0.1)
    given = {"network": network, "attack": attack, "epsilon": None, "regimes": ("adversarial",)}
    given |= {"stage2_from": None, "stage2": ("benign",), "dynamics": ("standard", "centered"), "stage2_epochs": 1}
    experiment = replace(SMALL, **given)
    assert experiment.epsilon == 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = experiment.run(tmp_path / "run", progress=False)
    splits = load_splits("digits", n_train=60, n_test=20)
    states = States(experiment, RunDirectory(result.path), splits)
    before, after = (states.at(0, "adversarial", epoch).model.variables.state for epoch in (0.0, 1.0))
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    assert np.isfinite(result.kernel(0, "adversarial", 1.0)).all()
    assert {row.dynamics for row in result.accuracies()} >= {"stage 1", "closed form", "standard", "centered"}
    lines = (result.path / "results.jsonl").read_bytes().splitlines(keepends=True)
    (result.path / "results.jsonl").write_bytes(b"".join(lines[:2]))
    with pytest.raises(ValueError, match=r"does not hold it: give it again, load_experiment\(out, network=...\)"):
        load_experiment(result.path)
    again = load_experiment(result.path, network=network, attack=attack)
    assert again == experiment
    assert again.run(result.path, progress=False).results == result.results
    assert (result.path / "results.jsonl").read_bytes() == b"".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("network", [Scaled(), Registered(), MLP(widths=(8,))])
def test_another_object_is_refused_with_what_differs_and_the_same_one_goes_on(network, tmp_path):
    experiment = replace(SMALL, network=network, epochs=0, regimes=("benign",))
    result = experiment.run(tmp_path / "run", progress=False)
    assert replace(experiment, network=replace(network)).run(tmp_path / "run", progress=False) == result
    others = {
        Scaled: (Scaled(2.0), r"network\.prints: '.*scale=1\.0.* there, '.*scale=2\.0.* here"),
        Registered: (Registered(2.0), r"network\.fields\.scale: 1\.0 there, 2\.0 here"),
        MLP: (MLP(widths=(9,)), r"network\.fields\.widths\.items: \[8\] there, \[9\] here"),
    }
    other, message = others[type(network)]
    for wrong, said in ((other, message), ("mlp", "network: .* there, 'mlp' here")):
        with pytest.raises(RunMismatchError, match=said):
            replace(experiment, network=wrong).run(tmp_path / "run", progress=False)


@pytest.mark.slow
def test_code_that_was_edited_is_another_network_though_it_prints_the_same(tmp_path):
    def made(function):
        @dataclass(frozen=True)
        class Edited(Scaled):
            def apply(self, params, state, x, *, train=False):
                return function(x.reshape(len(x), -1) @ params), state

        return Edited()

    experiment = replace(SMALL, network=made(jnp.tanh), epochs=0, regimes=("benign",))
    experiment.run(tmp_path / "run", progress=False)
    with pytest.raises(RunMismatchError, match=r"network\.computes: '\w{64}' there, '\w{64}' here"):
        replace(experiment, network=made(jnp.sin)).run(tmp_path / "run", progress=False)


@pytest.mark.slow
def test_a_model_gives_every_seed_its_weights_and_other_weights_are_another_experiment(tmp_path):
    network = MLP(n_outputs=10, widths=(8,))
    models = [Model(network, network.init(jax.random.key(seed), (8, 8, 1))) for seed in (0, 1)]
    experiment = replace(SMALL, network=models[0], seeds=2, epochs=0, regimes=("benign",))
    result = experiment.run(tmp_path / "run", progress=False)
    np.testing.assert_array_equal(result.kernel(0, "benign", 0.0), result.kernel(1, "benign", 0.0))
    with pytest.raises(RunMismatchError, match="sha256_variables"):
        replace(experiment, network=models[1]).run(tmp_path / "run", progress=False)


@pytest.mark.slow
def test_registered_objects_come_back_from_the_folder_alone(tmp_path):
    experiment = replace(
        SMALL, network=Registered(0.5), attack=APGD(0.2, norm="l2"), norm=None, epsilon=None, seeds=2
    )
    experiment = replace(experiment, epochs=0, memory="1GiB")
    assert (experiment.norm, experiment.epsilon) == ("l2", 0.2)
    experiment.run(tmp_path / "run", progress=False)
    assert load_experiment(tmp_path / "run") == experiment
    assert replace(load_evolution(tmp_path / "run").experiment, memory="1GiB") == experiment


@pytest.mark.slow
def test_a_run_reads_without_its_network(tmp_path):
    replace(SMALL, network=Scaled(), attack=Signs(0.1), epochs=0).run(tmp_path / "run", progress=False)
    experiment = load_evolution(tmp_path / "run").experiment
    assert repr(experiment.network) == "Scaled(scale=1.0, n_outputs=None)" and repr(experiment.attack).startswith(
        "Signs"
    )
    with pytest.raises(ValueError, match="states Scaled"):
        experiment.run(tmp_path / "other", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_norm_is_that_of_training_and_of_scoring(norm, tmp_path):
    experiment = replace(SMALL, norm=norm, epsilon=0.5, regimes=("adversarial",))
    result = experiment.run(tmp_path / "run", progress=False)
    assert experiment.train_attack == PGD(0.5, n_steps=2, norm=norm)
    assert experiment.test_attack == PGD(0.5, n_steps=2, norm=norm)
    assert RunDirectory(result.path).settings["norm"] == norm
    assert load_experiment(result.path) == experiment


class NoNetwork:
    pass


class Unhashable:
    __hash__: Any = None
    init, apply = Scaled.init, Scaled.apply


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"network": NoNetwork()}, TypeError, "an object with init and apply such as MLP.*NoNetwork"),
        ({"network": MLP}, TypeError, "it is a class: write MLP"),
        ({"network": "mpl"}, ValueError, "unknown network 'mpl'.*or module:name, a network such as MLP"),
        ({"network": Unhashable()}, TypeError, "network must be hashable"),
        ({"attack": "pdg"}, ValueError, "unknown attack 'pdg'.*or an attack such as PGD"),
        ({"attack": PGD}, TypeError, "attack: an attack is needed"),
        ({"attack": np.array([1, 2])}, TypeError, "attack: an attack is needed"),
        ({"attack": 0.1}, TypeError, "attack: an attack is needed"),
        ({"norm": "l3"}, ValueError, "unknown norm 'l3'; known are 'linf', 'l2', 'l1'"),
        ({"norm": "l2", "attack": PGD(0.1)}, ValueError, "norm='l2', but attack=PGD.* is of norm 'linf'"),
        ({"norm": "l2", "attack": "n-fgsm"}, ValueError, "attack='n-fgsm' is of norm 'linf' alone, got norm='l2'"),
        ({"flip_epoch": 4, "epochs": 4}, ValueError, "is the last epoch, so regime 'flip' would never turn"),
        ({"stage2_from": (("flip", 2.0),), "epochs": 4}, ValueError, r"write \('benign', 2\), or a later epoch"),
    ],
)
def test_what_is_no_network_attack_or_norm_is_named(given, kind, message):
    with pytest.raises(kind, match=message):
        KernelEvolution(**given)


@pytest.mark.parametrize("network", [MLP(n_outputs=3), Scaled(n_outputs=11)])
def test_a_network_with_another_number_of_outputs_than_classes_is_refused_before_anything_is_written(
    network, tmp_path
):
    with pytest.raises(ValueError, match=r"network has (3|11) outputs, but the data have 10 classes"):
        replace(SMALL, network=network).run(tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_network_that_cannot_take_the_inputs_is_refused_with_their_shape(tmp_path):
    network = MLP(n_outputs=10)
    model = Model(network, network.init(jax.random.key(0), (5,)))
    with pytest.raises(ValueError, match=r"cannot take inputs of shape") as caught:
        replace(SMALL, network=model).run(tmp_path / "run", progress=False)
    assert "(8, 8, 1)" in "".join(caught.value.__notes__)


def own_data(n_train=60):
    return load_splits("digits", n_train=n_train, n_test=20)


def test_a_run_on_ones_own_arrays_asks_for_them_again_and_knows_them(tmp_path):
    experiment = replace(SMALL, epochs=0, regimes=("benign",))
    result = experiment.run(tmp_path / "run", splits=own_data(), progress=False)
    again = load_experiment(tmp_path / "run")
    assert again.run(tmp_path / "run", splits=own_data(), progress=False) == result
    other = own_data()
    other.X[3, 0, 0] += 0.25
    with pytest.raises(RunMismatchError, match="the data that were given are not those that"):
        again.run(tmp_path / "run", splits=other, progress=False)
    with pytest.raises(
        RunMismatchError, match=r"give them again, run\(out, splits=Splits\(X, y, X_test, y_test\)\)"
    ):
        replace(again, n_train=50).run(tmp_path / "run", progress=False)


def test_a_file_is_found_from_elsewhere_and_may_move(tmp_path, monkeypatch):
    splits = own_data()
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", **splits._asdict())
    experiment = replace(SMALL, data="mine.npz", epochs=0, regimes=("benign",))
    result = experiment.run("run", progress=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = load_experiment(tmp_path / "run")
    assert again.data == str(tmp_path / "mine.npz")
    before = RunDirectory(tmp_path / "run").settings
    assert again.run(tmp_path / "run", progress=False).results == result.results
    (tmp_path / "mine.npz").rename(tmp_path / "moved.npz")
    replace(again, data=str(tmp_path / "moved.npz")).run(tmp_path / "run", progress=False)
    assert RunDirectory(tmp_path / "run").settings == before
    assert load_experiment(tmp_path / "run").data == str(tmp_path / "moved.npz")


def test_seeds_and_memory_stand_in_the_folder_and_are_those_of_the_last_call(tmp_path):
    experiment = replace(SMALL, epochs=0, regimes=("benign",), seeds=2)
    experiment.run(tmp_path / "run", progress=False)
    replace(experiment, seeds=1, memory="1GiB").run(tmp_path / "run", progress=False)
    there = load_experiment(tmp_path / "run")
    assert (there.seeds, there.memory) == (2, "1GiB")
    assert RunDirectory(tmp_path / "run").going_on["memories"] == ["2GiB", "1GiB"]


def test_a_folder_of_an_earlier_version_loads_and_says_what_is_missing(tmp_path):
    experiment = replace(SMALL, epochs=0, regimes=("benign",), seeds=2)
    experiment.run(tmp_path / "run", progress=False)
    file = tmp_path / "run" / "settings.json"
    stated = json.loads(file.read_text())
    del stated["going_on"]
    file.write_text(json.dumps(stated))
    with pytest.warns(RuntimeWarning, match="did not state seeds, memory and data_dir: taken are seeds=2"):
        there = load_experiment(tmp_path / "run")
    assert there == experiment
    there.run(tmp_path / "run", progress=False)
    assert RunDirectory(tmp_path / "run").going_on["memories"] == [None, "2GiB"]


def test_a_folder_that_is_no_run_and_objects_that_it_has_not_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_experiment(tmp_path)
    with pytest.raises(TypeError, match="takes network, attack, optimizer besides the folder, got netwrk"):
        load_experiment(tmp_path, netwrk=MLP())


MODULE = """
from dataclasses import dataclass
from ntkrobust_sk import MLP, Model
small = MLP(widths=(8,))
def made():
    return MLP(widths=(8,))
def needs(width):
    return MLP(widths=(width,))
class Nets:
    small = MLP(widths=(8,))
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of its own name, since what was imported once stays."""
    name = f"nets_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_broken.py").write_text("import nosuchlibrary")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.mark.parametrize("name", ["small", "made", "Nets.small"])
def test_a_network_is_imported_by_module_and_name_also_when_the_run_goes_on(module, tmp_path, name):
    experiment = replace(SMALL, network=f"{module}:{name}", epochs=0, regimes=("benign",))
    result = experiment.run(tmp_path / "run", progress=False)
    own = replace(experiment, network=MLP(widths=(8,)))
    assert own.run(tmp_path / "run", progress=False).results == result.results
    assert experiment.run(tmp_path / "run", progress=False).results == result.results
    again = load_experiment(tmp_path / "run")
    assert again == experiment and again.run(tmp_path / "run", progress=False).results == result.results


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("nosuchmodule_:net", ImportError, "the module nosuchmodule_ cannot be imported.*No module named"),
        ("MODULE_broken:net", ImportError, "MODULE_broken cannot be imported.*No module named 'nosuchlibrary'"),
        ("MODULE:smal", ValueError, "MODULE has no smal; did you mean small"),
        ("MODULE:number", ValueError, "is 3, which is no network"),
        ("MODULE:needs", ValueError, "called without arguments.*missing 1 required positional argument: 'width'"),
        ("MODULE:dataclass", ValueError, "which is no network"),
        ("MODULE.py:small", ValueError, "network must be 'module:name'"),
        ("MODULE:", ValueError, "network must be 'module:name'"),
        (":small", ValueError, "network must be 'module:name'"),
        ("a b:small", ValueError, "network must be 'module:name'"),
    ],
)
def test_what_cannot_be_imported_is_named_with_its_cause(module, tmp_path, name, kind, message):
    with pytest.raises(kind, match=message.replace("MODULE", module)):
        replace(SMALL, network=name.replace("MODULE", module)).run(tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
