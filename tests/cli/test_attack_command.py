"""``ntkrobust attack``: a saved estimator attacked, and a file whose examples are in the ball to the last bit."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from ntkrobust_sk import MLP, PGD, AdversarialKernelTrainer, robust_accuracy
from ntkrobust_sk.cli import command as cli
from ntkrobust_sk.cli.answer import Answer
from ntkrobust_sk.cli.attacked_examples import read_examples
from ntkrobust_sk.cli.named_attacks import ATTACKS, make_attack
from ntkrobust_sk.cli.saved_models import load_estimator
from ntkrobust_sk.datasets.splits import load_splits

RANDOM = np.random.default_rng(0)
X = RANDOM.uniform(size=(80, 6)).astype(np.float32)
Y = np.where(X[:, :3].sum(1) > X[:, 3:].sum(1), "more", "less")


FRAME = pd.DataFrame(X, columns=list("abcdef"))


def named(last):
    """Fitted on columns that are found by their names, in an order of its own."""
    columns = make_column_transformer((StandardScaler(), ["f", "a"]), ("passthrough", ["b", "c", "d", "e"]))
    return make_pipeline(columns, last).fit(FRAME, Y)


def _of_another_version(estimator, without=None):
    """An estimator that says that another scikit-learn has written it."""
    state = {k: v for k, v in estimator.__getstate__().items() if k != without}
    return _Older(type(estimator), state | {"_sklearn_version": "0.9.9"})


class _Older:
    def __init__(self, kind, state):
        self.kind, self.state = kind, state

    def __reduce__(self):
        return self.kind, (), self.state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and data, by name."""
    path = tmp_path_factory.mktemp("saved")
    digits = load_splits("digits", n_train=400, n_test=60)
    rows = digits.X.reshape(len(digits.X), -1)
    saved = {
        "digits": make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(rows, digits.y),
        "images": AdversarialKernelTrainer(MLP(widths=(4,)), max_epochs=4, random_state=0).fit(digits.X, digits.y),
        "two": LogisticRegression(C=100).fit(X, Y),
        "forest": RandomForestClassifier(2, random_state=0).fit(X, Y),
        "regressor": Ridge().fit(X, X[:, 0]),
        "scaler": StandardScaler().fit(X),
        "unfitted": LogisticRegression(),
        "number": 3,
        "broken": _of_another_version(LogisticRegression().fit(X, Y), without="intercept_"),
        "old": _of_another_version(LogisticRegression(C=100).fit(X, Y)),
        "mixed": make_pipeline(
            make_column_transformer((StandardScaler(), list("abcdef")), (OneHotEncoder(), ["g"])),
            LogisticRegression(),
        ).fit(FRAME.assign(g=Y), Y),
        "frame": named(LogisticRegression(C=100)),
        "frame forest": named(RandomForestClassifier(2, random_state=0)),
    }
    for name, thing in saved.items():
        joblib.dump(thing, path / f"{name}.joblib")
    (path / "damaged.joblib").write_bytes((path / "two.joblib").read_bytes()[:60])
    np.savez(path / "two.npz", X=X, y=Y, X_test=X[:30], y_test=Y[:30])
    np.savez(
        path / "other.npz", X=X, y=np.where(Y == "more", "more", "unknown"), X_test=X[:9], y_test=["unknown"] * 9
    )
    np.savez(path / "wide.npz", X=2 * X - 1, y=Y)
    np.savez(path / "few.npz", X=X[:20], y=Y[:20])
    np.save(path / "rows.npy", X)
    (path / "folder.npz").mkdir()
    (path / "empty.npz").touch()
    (path / "empty.joblib").touch()
    return path


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)

    def run(arguments):
        return cli.main(
            ["attack", *shlex.split(arguments), "--overwrite", "--out", str(tmp_path / "made" / "adversarial.npz")]
        )

    run.out = tmp_path / "made" / "adversarial.npz"
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, dtype, norm, epsilon",
    [
        ("digits", np.float64, "linf", "1/10"),
        ("digits", np.float64, "l2", "0.7"),
        ("images", np.float32, "linf", "1/10"),
    ],
)
def test_the_examples_reload_inside_of_the_ball_to_the_last_bit(run, model, dtype, norm, epsilon, capsys):
    command = f"--model {model}.joblib --data digits --n-test 60 --attack pgd --steps 5"
    assert run(f"{command} --norm {norm} --epsilon {epsilon}") == 0
    with np.load(run.out, allow_pickle=False) as file:
        found, settings = dict(file), json.loads(str(file["settings"]))
    assert found["X_adv"].dtype == found["X"].dtype == dtype and found["X_adv"].shape == (60, 8, 8, 1)
    delta = (found["X_adv"].astype(float) - found["X"]).reshape(60, -1)
    size = np.abs(delta).max() if norm == "linf" else np.sqrt((delta**2).sum(1)).max()
    assert 0 < size <= (0.1 if norm == "linf" else 0.7)
    assert found["X_adv"].min() >= 0 and found["X_adv"].max() <= 1
    assert (
        settings["norm"] == norm
        and settings["data"] == "digits"
        and settings["random_state"] == 0
        and "PGD(" in settings["attack"]
    )

    splits = load_splits("digits", n_train=400, n_test=60)
    np.testing.assert_array_equal(found["X"], splits.X_test)
    np.testing.assert_array_equal(found["y"], splits.y_test)
    fitted = load_estimator(f"{model}.joblib")
    np.testing.assert_array_equal(found["predictions"], fitted.predict(found["X_adv"].reshape(60, -1)))
    np.testing.assert_array_equal(found["fooled"], found["predictions"] != found["y"])
    attack = PGD(settings["epsilon"], n_steps=5, norm=norm)
    robust = robust_accuracy(fitted, splits.X_test.reshape(60, -1), splits.y_test, attack)
    assert 1 - found["fooled"].mean() == pytest.approx(robust)
    assert f"robust accuracy  {robust:.3f}  [" in capsys.readouterr().out


@pytest.mark.slow
def test_autoattack_tells_what_each_member_added(run, capsys):
    assert run("--model two.joblib --data two.npz --n-test 30 --epsilon 1/2 --steps 5") == 0
    out = capsys.readouterr().out
    with np.load(run.out, allow_pickle=False) as file:
        labels, fooled, clean = file["y"], file["fooled"], file["clean_predictions"]
    assert labels.tolist() == Y[:30].tolist() and fooled.all()
    right = np.sum(clean == labels)
    assert f"clean accuracy   {right / 30:.3f}" in out and f"after apgd-ce    0.000  {right} more fell" in out
    assert "after square     0.000  0 more fell" in out


@pytest.mark.slow
def test_a_forest_is_attacked_without_gradients(run):
    assert run("--model forest.joblib --data two.npz --n-test 30 --epsilon 0.1 --attack square --steps 5") == 0
    with np.load(run.out) as file:
        assert file["fooled"].mean() > np.mean(file["clean_predictions"] != file["y"])


@pytest.mark.slow
def test_bounds_are_given_or_left_out(run):
    command = "--model two.joblib --data wide.npz --n-test 10 --epsilon 0.2 --attack fgsm"
    assert run(f"{command} --bounds -1 1") == 0
    with np.load(run.out) as file:
        assert np.abs(file["X_adv"]).max() <= 1
    assert run(f"{command} --no-bounds") == 0


def test_what_was_there_is_kept_when_writing_fails(run, monkeypatch):
    command = "--model two.joblib --data two.npz --n-test 30 --epsilon 0.1 --attack fgsm"
    assert run(command) == 0
    before = run.out.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run(f"{command} --random-state 1") == 2
    assert run.out.read_bytes() == before and list(run.out.parent.iterdir()) == [run.out]


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_made_by_its_name(name):
    attack = make_attack(name, 0.1, bounds=None)
    own = {"ddn": "l2", "sigma-zero": "l0"}.get(name)
    assert (attack.epsilon, attack.norm, attack.bounds) == (0.1, own or "linf", None)
    assert make_attack(name, 0.1, norm=own or "l2").norm == (own or "l2")


GOOD = {"model": "two.joblib", "data": "two.npz", "epsilon": "0.1", "attack": "fgsm", "n-test": "30"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": "missing.joblib"}, "there is no file missing.joblib"),
        ({"model": "damaged.joblib"}, "damaged.joblib cannot be read by joblib"),
        ({"model": "number.joblib"}, "number.joblib holds int, which is no estimator"),
        ({"model": "scaler.joblib"}, "holds StandardScaler, which is no estimator that predicts"),
        ({"model": "unfitted.joblib"}, "not fitted yet"),
        ({"model": "regressor.joblib"}, "Ridge is a regressor"),
        ({"model": "digits.joblib"}, "X has 6 features, but"),
        ({"data": "missing.npz"}, "there is no file missing.npz"),
        ({"data": "letters"}, "unknown data 'letters'"),
        ({"data": "rows.npy"}, "of a folder of images by class; write np.savez('data.npz', X=X, y=y)"),
        ({"data": "folder.npz"}, "there are no images in the folder folder.npz"),
        ({"data": "empty.npz"}, "empty.npz cannot be read"),
        ({"model": "empty.joblib"}, "empty.joblib cannot be read by joblib: EOFError"),
        ({"model": "mixed.joblib"}, "fitted on a data frame with 7, ['a', 'b', 'c', 'd', 'e', 'f', 'g']"),
        ({"data": "other.npz"}, "labels that were not seen in fit: ['unknown']"),
        ({"data": "wide.npz"}, "give --bounds LOW HIGH or --no-bounds"),
        ({"data-dir": "."}, "--data-dir is the folder of cifar10, fashion-mnist, mnist; 'two.npz' needs none"),
        ({"n-test": "1"}, "cannot hold one of each of the 2 classes"),
        ({"epsilon": "-0.1"}, "epsilon must be a finite number >= 0"),
        ({"epsilon": "nan"}, "epsilon must be a finite number >= 0"),
        ({"steps": "5"}, "fgsm has one step"),
        ({"attack": "ddn", "norm": "linf"}, "ddn is an attack in the norm l2, not linf"),
        ({"steps": "0", "attack": "pgd"}, "--steps must be a positive integer"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_with_status_2(run, change, message, capsys):
    arguments = " ".join(f"--{name} {value}" for name, value in (GOOD | change).items())
    assert run(arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "runs whatever code is in it" not in line]
    assert len(lines) == 1 and lines[0].startswith("ntkrobust attack: ") and message in lines[0]
    assert captured.out == "" and not run.out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, last", [("frame", "LogisticRegression"), ("frame forest", "RandomForestClassifier")]
)
def test_a_model_of_a_data_frame_is_given_one(run, folder, name, last, capsys):
    assert run(f"--model '{name}.joblib' --data two.npz --n-test 30 --epsilon 0.1 --attack square --steps 20") == 0
    with np.load(run.out) as file:
        X_adv, answers = file["X_adv"], file["predictions"]
    pipeline = joblib.load(folder / f"{name}.joblib")
    attacked = pd.DataFrame(X_adv, columns=FRAME.columns)
    assert answers.tolist() == pipeline.predict(attacked).tolist()
    assert "feature names" not in capsys.readouterr().err


def test_a_model_of_another_version_is_told_of_in_a_line_and_what_fails_in_another(run, capsys):
    command = "--data two.npz --n-test 30 --epsilon 0.1 --attack fgsm"
    assert run(f"--model old.joblib {command}") == 0
    told = "ntkrobust attack: old.joblib was written with scikit-learn 0.9.9, and here is"
    assert capsys.readouterr().err.splitlines()[1].startswith(told)
    assert run(f"--model broken.joblib {command}") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("ntkrobust attack: broken.joblib cannot be attacked: AttributeError: ")


@pytest.mark.slow
def test_warnings_are_lines_of_the_command(run):
    source = f"import sys; from ntkrobust_sk.cli import main; sys.exit(main({_forest_attacked(run)!r}))"
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert all(line.startswith("ntkrobust attack: ") for line in ended.stderr.splitlines())
    assert "is attacked as a black box" in ended.stderr


def _forest_attacked(run):
    options = "--model forest.joblib --data two.npz --n-test 9 --epsilon 0.1 --attack fgsm"
    return ["attack", *shlex.split(options), "--out", str(run.out)]


def test_fewer_examples_than_asked_for_are_all_attacked(run):
    assert run("--model two.joblib --data few.npz --epsilon 0.1 --attack fgsm") == 0
    with np.load(run.out) as file:
        np.testing.assert_array_equal(file["X"], X[:20].astype(np.float32))
    assert run("--model two.joblib --data few.npz --n-test 12 --epsilon 0.1 --attack fgsm") == 0
    with np.load(run.out) as file:
        assert len(file["X"]) == 12


@pytest.mark.parametrize(("rows", "n_test"), [(80, 80), (80, 79), (80, 78), (79, 500), (1, 500), (1, 1)])
def test_a_file_of_any_length_is_attacked_up_to_the_number_asked_for(run, tmp_path, rows, n_test):
    np.savez(tmp_path / "own.npz", X=X[:rows], y=Y[:rows])
    options = f"--model two.joblib --data {tmp_path / 'own.npz'} --n-test {n_test} --epsilon 0.1 --attack fgsm"
    assert run(options) == 0
    with np.load(run.out) as file:
        assert len(file["X"]) == len(np.unique(file["X"], axis=0)) == min(rows, n_test)


def test_before_a_file_of_joblib_is_loaded_a_line_says_what_that_means(run, capsys):
    assert run(command_of(GOOD)) == 0
    assert "loading two.joblib with joblib runs whatever code is in it" in capsys.readouterr().err


def command_of(options):
    return " ".join(f"--{name} {value}" for name, value in options.items())


@pytest.mark.parametrize(
    "out, message", [("two.npz", "would overwrite what is attacked"), (".", "is a folder; give a file"),
                     ("two.npz/x.npz", "two.npz/x.npz"), ("", "must be the path of a file")],
)  # fmt: skip
def test_an_output_that_cannot_be_written_is_refused_before_the_work(out, message, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = (folder / "two.npz").read_bytes()
    monkeypatch.setattr(
        "ntkrobust_sk.cli.saved_models.load_estimator", lambda *_: pytest.fail("the work has begun")
    )
    assert cli.main(["attack", *shlex.split(command_of(GOOD)), "--out", out]) == 2
    assert message in capsys.readouterr().err and (folder / "two.npz").read_bytes() == before


@pytest.mark.parametrize("option", ["out", "data", "model"])
def test_a_pipe_in_the_place_of_a_file_is_refused_before_the_work_and_stays(
    option, folder, tmp_path, capsys, monkeypatch, nothing_waits
):
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        "ntkrobust_sk.cli.attacked_examples.attack_examples", lambda *_, **__: pytest.fail("the work has begun")
    )
    options = GOOD | {"out": tmp_path / "out.npz"} | {option: pipe}
    assert cli.main(["attack", *shlex.split(command_of(options))]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "pipe.npz" in error and "named pipe" in error and pipe.is_fifo()


def test_examples_are_read_back_with_their_settings_and_a_changed_file_is_refused(run):
    assert run(command_of(GOOD)) == 0
    arrays, settings = read_examples(run.out)
    assert settings["model"] == "two.joblib" and arrays["X"].shape == (30, 6)
    np.testing.assert_array_equal(arrays["fooled"], arrays["predictions"] != arrays["y"])
    with np.load(run.out) as file:
        there = dict(file)
    for name, change in (("X", "X_adv"), ("fooled", "X_adv"), ("settings", None)):
        other = there | {name: there[change] if change else np.array('{"model": "other.joblib"}')}
        np.savez(run.out, **other)
        with pytest.raises(ValueError, match=r"adversarial\.npz"):
            read_examples(run.out)
    np.savez(run.out, X=there["X"], y=there["y"])
    with pytest.raises(ValueError, match=r"adversarial\.npz holds no adversarial examples"):
        read_examples(run.out)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"epsilon": "4/0"}, "expected a number or a fraction such as 4/255, got '4/0'"),
        ({"epsilon": "four"}, "expected a number or a fraction such as 4/255, got 'four'"),
        ({"attack": "none"}, "invalid choice: 'none'"),
    ],
)
def test_arguments_that_are_not_known_are_named(run, change, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(" ".join(f"--{name} {value}" for name, value in (GOOD | change).items()))
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_a_model_of_skops_is_attacked_like_one_of_joblib(run, folder):
    skops.io.dump(joblib.load(folder / "two.joblib"), folder / "two.skops")
    made = []
    for name in ("two.joblib", "two.skops"):
        assert run(" ".join(f"--{key} {value}" for key, value in (GOOD | {"model": name}).items())) == 0
        made.append(np.load(run.out)["X_adv"])
    np.testing.assert_array_equal(*made)


@pytest.mark.slow
def test_a_model_that_saved_itself_is_attacked_like_one_of_joblib(run, folder, tmp_path, capsys):
    load_estimator(folder / "images.joblib").save(tmp_path / "images.ntk")
    found = []
    for name in (f"{folder}/images.joblib", f"{tmp_path}/images.ntk"):
        capsys.readouterr()
        assert run(f"--model '{name}' --data digits --n-test 30 --epsilon 0.1 --attack pgd --steps 3") == 0
        assert ("runs whatever code" in capsys.readouterr().err) == name.endswith(".joblib")
        found.append(read_examples(run.out)[0])
    for array in found[0]:
        np.testing.assert_array_equal(found[1][array], found[0][array], strict=True)
    content = (tmp_path / "images.ntk").read_bytes()
    (tmp_path / "images.ntk").write_bytes(content[:-200] + bytes(200))
    assert run(f"--model '{tmp_path}/images.ntk' --data digits --n-test 30 --epsilon 0.1 --attack pgd") == 2
    assert "images.ntk cannot be loaded" in capsys.readouterr().err


def test_skops_builds_no_object_of_a_type_that_it_does_not_know(run, folder, capsys):
    skops.io.dump(FunctionTransformer(os.getcwd), folder / "code.skops")
    assert run(" ".join(f"--{key} {value}" for key, value in (GOOD | {"model": "code.skops"}).items())) == 2
    assert "code.skops cannot be read by skops" in capsys.readouterr().err


def test_without_skops_its_files_are_refused_by_name(run, folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "skops", None)
    monkeypatch.setitem(sys.modules, "skops.io", None)
    (folder / "model.skops").write_bytes(b"PK\x03\x04")
    arguments = " ".join(f"--{name} {value}" for name, value in (GOOD | {"model": "model.skops"}).items())
    assert run(arguments) == 2
    assert "pip install skops" in capsys.readouterr().err


def test_the_help_says_that_models_run_code(capsys):
    with pytest.raises(SystemExit):
        cli.main(["attack", "--help"])
    assert "runs whatever code is in it" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("file", ["README.md", "docs/evaluation.md"])
def test_the_commands_of_the_documentation_are_understood(file, monkeypatch):
    text = (Path(__file__).parents[2] / file).read_text(encoding="utf-8")
    seen = []
    monkeypatch.setattr("ntkrobust_sk.cli.attack.run", lambda options: seen.append(options) or Answer("", dict))
    (command,) = re.findall(r"^\$ ntkrobust (attack .+)$", text, re.MULTILINE)
    assert cli.main(shlex.split(command)) == 0
    assert seen[0]["epsilon"] == [4 / 255] and seen[0]["out"] == "adversarial.npz"
