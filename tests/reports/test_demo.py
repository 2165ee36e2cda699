"""The demo and its command line, on a few digits."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from ntkrobust_sk._locks import held
from ntkrobust_sk.cli import command as cli
from ntkrobust_sk.cli.answer import Answer
from ntkrobust_sk.evolution.presets import preset
from ntkrobust_sk.reports import demo

FEW = "--n-train 200 --n-kernel 60 --n-test 40 --max-epochs 1 --train-steps 2 --test-steps 2 --network mlp"
PREDICTORS = {
    "benign network",
    "adversarial network",
    "benign kernel, closed form",
    "adversarial kernel, closed form",
    "adversarial kernel, frozen, adversarial training",
}


def run(arguments, out):
    return cli.main(["demo", "--overwrite", "--out", str(out), *shlex.split(arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of one run, its exit status and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "made" / "by the demo"
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *texts, **_: printed.extend(texts))
        status = run(f"{FEW} --random-state 3 --no-strict", out)
    return out, status, "\n".join(printed)


def refused_constant(name):
    raise ValueError(f"{name} is no JSON")


@pytest.mark.slow
def test_a_run_writes_results_that_other_programs_can_read(finished):
    out, status, _ = finished
    assert status == 0
    results = json.loads((out / "results.json").read_text(), parse_constant=refused_constant)
    assert set(results) == {
        "settings",
        "accuracy",
        "kernel_distance",
        "effective_rank",
        "claims",
        "seconds",
        "hardware",
        "versions",
    }
    assert results["settings"]["n_train"] == 200 and results["settings"]["random_state"] == 3
    assert results["settings"]["epsilon"] == demo.Demo().epsilon
    assert set(results["accuracy"]) == PREDICTORS
    for accuracy in results["accuracy"].values():
        assert 0 <= accuracy["robust"] <= accuracy["clean"] <= 1
        assert (40 * accuracy["clean"]) == pytest.approx(round(40 * accuracy["clean"]))
    names = {"initial", "benign", "adversarial"}
    assert set(results["effective_rank"]) == set(results["kernel_distance"]) == names
    assert all(1 <= rank <= 60 for rank in results["effective_rank"].values())
    assert all(results["kernel_distance"][a][a] == pytest.approx(0, abs=1e-6) for a in names)


@pytest.mark.slow
def test_a_claim_holds_where_its_numbers_say_so(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    accuracy = results["accuracy"]
    benign, adversarial = (accuracy[f"{kind} kernel, closed form"] for kind in ("benign", "adversarial"))
    through_kernel = (
        adversarial["robust"] - benign["robust"] >= 0.25 and abs(adversarial["clean"] - benign["clean"]) <= 0.05
    )
    frozen = accuracy["adversarial kernel, frozen, adversarial training"]["robust"]
    on_frozen = frozen >= accuracy["adversarial network"]["robust"]
    assert [claim["holds"] for claim in results["claims"]] == [through_kernel, on_frozen]


def test_a_run_draws_a_figure_and_leaves_nothing_half_written(finished):
    out = finished[0]
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert {path.name for path in out.iterdir()} == {"results.json", "figure.png"}


def test_a_run_prints_every_predictor_and_claim(finished):
    out, _, printed = finished
    results = json.loads((out / "results.json").read_text())
    assert demo.table(results) in printed and str(out) in printed
    for name in PREDICTORS:
        assert name in printed
    # one epoch teaches too little for verdicts
    assert printed.count("NO VERDICT: ") == 2 and "HOLD" not in printed
    assert not any(claim["counts"] for claim in results["claims"])


@pytest.mark.parametrize(
    ("arguments", "held", "status"),
    [
        ("", False, 1),
        ("--strict", False, 1),
        ("--no-strict", False, 0),
        ("--strict", True, 0),
        ("--data mnist --data-dir .", False, 0),
        ("--data mnist --data-dir . --strict", False, 1),
    ],
)
def test_the_exit_status_says_whether_the_claims_hold(arguments, held, status, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("ntkrobust_sk.reports.demo.run_demo", lambda settings, out: held)
    assert run(arguments, tmp_path) == status
    assert ("a claim does not hold" in capsys.readouterr().err) == (status == 1)


@pytest.mark.slow
def test_a_real_run_whose_claim_fails_exits_with_1(tmp_path, capsys):
    # without any perturbation no kernel can be more robust than another by a quarter
    assert run(f"{FEW} --epsilon 0 --strict", tmp_path) == 1
    captured = capsys.readouterr()
    assert "NO VERDICT" in captured.out and "No verdicts: the benign network has learned" in captured.out
    assert "a claim does not hold" in captured.err


def test_the_commands_of_the_documentation_are_understood(monkeypatch):
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    (asked,) = re.findall(r"^\$ ntkrobust (demo [^#\n]+?) *(?:#.*)?$", text, re.MULTILINE)
    seen = []
    monkeypatch.setattr("ntkrobust_sk.reports.demo.run_demo", lambda settings, out: seen.append(settings) or True)
    assert cli.main(shlex.split(asked)) == 0
    assert seen == [demo.settings_for("cifar10", data_dir="DIR", n_train=2000)]

    monkeypatch.setattr("ntkrobust_sk.cli.evolve.run", lambda options: seen.append(options) or Answer("", dict))
    commands = re.findall(r"^\$ ntkrobust (evolve [^#\n]+?) *(?:#.*)?$", text, re.MULTILINE)
    for command in commands:
        assert cli.main(shlex.split(command)) == 0
        options = seen.pop()
        out, *_ = options.pop("out"), options.pop("n_jobs", None), options.pop("from_", None)
        options = {name: value for name, value in options.items() if value is not None}
        assert out.startswith("runs/") and preset(**({"data": "digits"} | options)).data
    assert len(commands) >= 4 and any("--network resnet18 --n-train 50000" in command for command in commands)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data imagenet", "invalid choice: 'imagenet'"),
        ("--network vgg", "invalid choice: 'vgg'"),
        ("--n-train many", "invalid int value: 'many'"),
        ("--epsilon a", "expected a number or a fraction such as 4/255, got 'a'"),
    ],
)
def test_arguments_that_are_not_known_are_named(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(arguments, tmp_path)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("data", ["cifar10", "mnist", "fashion-mnist"])
def test_a_missing_data_folder_is_named(data, tmp_path, capsys):
    missing = tmp_path / "not there"
    assert run(f"--data {data} --data-dir '{missing}'", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("ntkrobust demo: ") and str(missing) in error and "no such folder" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--epsilon -1", "epsilon must be a finite number >= 0"),
        ("--alpha -1", "alpha must be a finite number >= 0, got -1.0"),
        ("--max-epochs -1", "--max-epochs must be an integer >= 0, got -1"),
        ("--epsilon inf", "epsilon must be a finite number >= 0"),
        ("--train-steps 0", "--train-steps must be a positive integer"),
        ("--random-state -1", "--random-state must be an integer >= 0"),
        ("--test-steps 0", "--test-steps must be a positive integer"),
        ("--n-kernel 3", "--n-kernel=3 cannot hold one of each of the 10 classes"),
        ("--n-train -5", "--n-train must be a positive integer"),
        ("--n-test 5000", "--n-test=5,000 leaves too few"),
    ],
)
def test_settings_that_cannot_work_are_named_before_any_training(arguments, message, tmp_path, capsys):
    assert run(arguments, tmp_path) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


@pytest.mark.slow
def test_more_kernel_examples_than_there_are_become_all_of_them(tmp_path):
    with pytest.warns(RuntimeWarning, match="n_kernel=99,999, but there are 200 training examples"):
        assert run(f"{FEW} --n-kernel 99999 --no-strict --max-epochs 0 --epsilon 4/255", tmp_path) == 0
    settings = json.loads((tmp_path / "results.json").read_text())["settings"]
    assert settings["n_kernel"] == settings["n_train"] == 200 and settings["epsilon"] == 4 / 255


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    assert run(FEW, tmp_path / "taken") == 2
    assert "taken" in capsys.readouterr().err


def test_a_demo_in_the_folder_of_another_one_is_refused(tmp_path, capsys):
    with held(tmp_path):
        assert run(FEW, tmp_path) == 2
    assert f"{tmp_path} is in use by process" in capsys.readouterr().err and not any(tmp_path.iterdir())


@pytest.mark.parametrize("data", demo.PRESETS)
def test_the_demo_attacks_as_the_experiment_on_the_same_data_does(data):
    settings, experiment = demo.settings_for(data), preset(data)
    assert (settings.data, settings.epsilon, settings.train_steps) == (
        data,
        experiment.epsilon,
        experiment.train_steps,
    )
    assert settings.n_train <= experiment.n_train and settings.max_epochs <= experiment.epochs
    assert demo.settings_for(data, n_test=7, alpha=None) == replace(settings, n_test=7)
