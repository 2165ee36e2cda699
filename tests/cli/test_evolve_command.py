"""``ntkrobust evolve``: a folder is enough to go on, another run to begin from; own networks are found."""

from dataclasses import replace

import pytest

from ntkrobust_sk import KernelEvolution
from ntkrobust_sk.cli.command import main

pytest.importorskip("safetensors", reason="safetensors is not installed")

SMALL = KernelEvolution(
    network="mlp",
    n_train=60,
    n_test=20,
    n_kernel=20,
    epochs=0,
    regimes=("benign",),
    stage2_from=(),
    n_features=0,
    seeds=2,
)


@pytest.fixture
def seen(monkeypatch):
    """The experiments that the command would run, and how."""
    seen = []

    def run(self, out, **options):
        seen.append((self, options))
        raise ValueError("seen")

    monkeypatch.setattr(KernelEvolution, "run", run)
    return seen


@pytest.fixture
def run(tmp_path, monkeypatch):
    SMALL.run(tmp_path / "run1", progress=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run1"


def test_a_folder_alone_goes_on_with_its_settings_seeds_and_memory(run, seen):
    main(["evolve", "--out", "run1"])
    main(["evolve", "--out", "run1", "--seeds", "3", "--memory", "1GiB", "--jobs", "2"])
    assert seen == [(SMALL, {}), (replace(SMALL, seeds=3, memory="1GiB"), {"n_jobs": 2})]


def test_settings_of_another_run_are_taken_with_those_given_in_their_place(run, seen):
    main(["evolve", "--out", "run2", "--from", "run1", "--epsilon", "8/255"])
    assert seen == [(replace(SMALL, epsilon=8 / 255), {"from_": "run1"})]


def test_without_a_folder_the_digits_are_the_data(run, seen):
    main(["evolve", "--out", "run2", "--epochs", "3"])
    assert seen == [(KernelEvolution(epochs=3), {})]


def test_a_folder_without_a_run_is_said_to_begin_anew_with_what_settings(run, seen, capsys):
    main(["evolve", "--out", "rnu1", "--epochs", "3"])
    main(["evolve", "--out", "run2", "--from", "run1"])
    typo, taken = (line for line in capsys.readouterr().err.splitlines() if line.startswith("no run in"))
    assert typo.startswith("no run in rnu1 yet: a new one begins, with these settings: data=digits, network=cnn")
    assert "epochs=3" in typo
    assert taken.startswith("no run in run2 yet") and f"n_train={SMALL.n_train}" in taken
    main(["evolve", "--out", "run1"])
    assert "no run in" not in capsys.readouterr().err


def test_a_network_of_the_current_folder_is_found_and_one_that_is_not_is_named(run, capsys):
    (run.parent / "nets_of_the_command.py").write_text("number = 3")
    given = "--data digits --n-train 60 --n-test 20 --n-kernel 20"
    for name, said in {
        "nets_of_the_command:number": "is 3, which is no network",
        "nets_of_the_command:nubmer": "has no nubmer; did you mean number?",
        "nosuchmodule_:net": "the module nosuchmodule_ cannot be imported (ModuleNotFoundError",
    }.items():
        assert main(["evolve", "--out", "run3", "--network", name, *given.split()]) == 2
        printed = capsys.readouterr().err
        *_, last = printed.splitlines()
        assert said in last and printed.count("\n") == 2
    assert not (run.parent / "run3").exists()


def test_a_folder_to_take_over_from_that_is_no_run_is_named(run, capsys):
    assert main(["evolve", "--out", "run2", "--from", "nosuch"]) == 2
    assert "the path nosuch holds no run" in capsys.readouterr().err
