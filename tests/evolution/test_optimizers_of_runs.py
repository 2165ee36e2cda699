"""The optimiser of an experiment: by name or one of optax, stated in the folder, gone on with, and refused."""

import json
from dataclasses import replace

import numpy as np
import optax
import pytest

from ntkrobust_sk import MLP, KernelEvolution, load_evolution, load_experiment
from ntkrobust_sk.evolution.run_directory import RunDirectory, RunMismatchError

pytest.importorskip("safetensors", reason="safetensors is not installed")
pytest.importorskip("zarr", reason="zarr is not installed")

SMALL = {
    "network": MLP(widths=(8,)),
    "n_train": 60,
    "n_test": 20,
    "n_kernel": 20,
    "epochs": 1,
    "fractions": (),
    "regimes": ("benign", "adversarial"),
    "train_steps": 2,
    "test_steps": 2,
    "stage2_epochs": 1,
    "dynamics": ("centered",),
    "stage2": ("benign",),
    "n_features": 0,
    "batch_size": 32,
}


def scores(folder):
    return [(r["task"], r["clean"]) for r in load_evolution(folder).results if "clean" in r and "epoch" in r]


def last_state(folder):
    run = RunDirectory(folder)
    return run.arrays("checkpoints", "seed-0", "benign", "0001.000.safetensors")


def test_sgd_by_name_is_what_nothing_said_is_and_what_folders_state_of_it(tmp_path):
    plain = KernelEvolution(**SMALL)
    assert plain == KernelEvolution(**SMALL, optimizer="sgd", learning_rate=0.05, momentum=0.9)
    assert (plain.learning_rate, plain.momentum, plain.stage2_learning_rate) == (0.05, 0.9, 0.01)
    plain.run(tmp_path / "run", progress=False)
    settings = RunDirectory(tmp_path / "run").settings
    # as before there was a choice
    assert "optimizer" not in settings and (settings["learning_rate"], settings["momentum"]) == (0.05, 0.9)
    assert load_experiment(tmp_path / "run") == plain


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_an_optimizer_by_name_is_stated_trains_and_goes_on_from_the_folder(tmp_path, name):
    experiment = KernelEvolution(**SMALL, optimizer=name, learning_rate=0.01, average_decay=0.5)
    assert (experiment.momentum, experiment.stage2_learning_rate) == (None, 0.01)
    experiment.run(tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["optimizer"] == name
    again = load_experiment(tmp_path / "run")
    assert again == experiment
    before = (tmp_path / "run" / "results.jsonl").read_bytes()
    again.run(tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "results.jsonl").read_bytes() == before
    with pytest.raises(RunMismatchError, match="optimizer"):
        load_experiment(tmp_path / "run", optimizer="sgd").run(tmp_path / "run", progress=False)


def test_adam_by_name_is_adam_of_optax_to_the_last_digits(tmp_path):
    # closed-form results follow from the same states; the learning rate is one number in both
    KernelEvolution(**SMALL, optimizer="adam", learning_rate=0.01).run(tmp_path / "name", progress=False)
    KernelEvolution(**SMALL, optimizer=optax.adam(0.01)).run(tmp_path / "optax", progress=False)
    KernelEvolution(**SMALL, optimizer=optax.sgd(0.01)).run(tmp_path / "sgd", progress=False)
    by_name, of_optax, sgd = (last_state(tmp_path / name) for name in ("name", "optax", "sgd"))
    weights = [name for name in of_optax if name.startswith("model") and of_optax[name].ndim == 2]
    assert weights
    for name in weights:
        np.testing.assert_allclose(by_name[name], of_optax[name], atol=1e-5)
        assert np.abs(sgd[name] - of_optax[name]).max() > 1e-3


def test_one_of_optax_is_stated_by_what_it_does_and_has_to_be_given_again(tmp_path):
    experiment = KernelEvolution(**SMALL, optimizer=optax.adam(0.01))
    experiment.run(tmp_path / "run", progress=False)
    stated = RunDirectory(tmp_path / "run").settings["optimizer"]
    assert stated["class"].startswith("optax.") and len(stated["computes"]) == 64 and " at 0x" not in str(stated)
    assert "optax" in repr(load_evolution(tmp_path / "run").experiment.optimizer)
    with pytest.raises(ValueError, match=r"optimizer=\.\.\."):
        load_experiment(tmp_path / "run")
    # another object that does the same is the same
    again = load_experiment(tmp_path / "run", optimizer=optax.adam(0.01))
    again.run(tmp_path / "run", progress=False)
    for other in (optax.adam(0.02), optax.adam(optax.cosine_decay_schedule(0.01, 9)), optax.sgd(0.01), "sgd"):
        with pytest.raises(RunMismatchError, match="optimizer"):
            load_experiment(tmp_path / "run", optimizer=other).run(tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optimizer": "adm"}, "optimizer.*'adm'.*adam"),
        ({"optimizer": "adam", "momentum": 0.9}, r"momentum=0\.9 .*optimizer='adam', which has none"),
        ({"optimizer": "adamw", "learning_rate": -1.0}, "learning_rate must be a finite number > 0"),
        ({"optimizer": optax.adam(0.1), "learning_rate": 0.1}, r"learning_rate=0\.1 .*has its own"),
        ({"optimizer": optax.adam(0.1), "stage2_learning_rate": 0.1}, r"stage2_learning_rate=0\.1 .*has its own"),
        ({"optimizer": optax.adam}, "optimizer"),
        ({"optimizer": 3}, "optimizer must be"),
        ({"optimizer": ["adam"]}, "optimizer must be"),
    ],
)
def test_an_optimizer_that_is_none_or_contradicts_other_settings_is_refused(given, said):
    with pytest.raises((TypeError, ValueError), match=said):
        KernelEvolution(**SMALL, **given)


def test_replacing_the_optimizer_says_what_goes_with_it():
    with pytest.raises(ValueError, match="momentum=None"):
        replace(KernelEvolution(**SMALL), optimizer="adam")
    rates = {"learning_rate": None, "momentum": None, "stage2_learning_rate": None}
    assert replace(KernelEvolution(**SMALL), optimizer="adam", **rates).learning_rate == 0.001
