"""``ntkrobust evaluate``, ``certify``, ``gram``, ``report``, ``info``: the library's numbers, as text and JSON."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ntkrobust_sk import (
    MLP,
    PGD,
    AdversarialKernelTrainer,
    KernelEvolution,
    certified_accuracy,
    gram,
    load,
    robust_accuracy,
)
from ntkrobust_sk.cli.answer import Answer, plain
from ntkrobust_sk.cli.command import main
from ntkrobust_sk.cli.gram import KINDS
from ntkrobust_sk.cli.info import EXTRAS
from ntkrobust_sk.datasets.splits import load_splits
from ntkrobust_sk.kernels import read_gram
from ntkrobust_sk.kernels.ntk import KERNELS

SPLITS = load_splits("digits", n_train=300, n_test=40)
X = SPLITS.X_test.reshape(40, -1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network, its model, a classifier that hides its gradients, and a small run."""
    path = tmp_path_factory.mktemp("saved")
    network = MLP(widths=(8,))
    trainer = AdversarialKernelTrainer(network, max_epochs=4, random_state=0).fit(SPLITS.X, SPLITS.y)
    trainer.save(path / "net.ntk")
    trainer.model_.save(path / "model.ntk")
    joblib.dump(LogisticRegression(max_iter=300).fit(SPLITS.X.reshape(300, -1), SPLITS.y), path / "flat.joblib")
    settings = {"regimes": ("benign",), "epochs": 1, "fractions": (), "stage2_from": (), "n_features": 0}
    few = {"n_train": 60, "n_test": 20, "n_kernel": 20, "network": "mlp", "test_steps": 2}
    KernelEvolution(**settings, **few).run(path / "run", progress=False)
    np.savez(path / "two.npz", X=np.eye(6, dtype=np.float32), y=[0, 1] * 3)
    (path / "folder").mkdir()
    (path / "noise.ntk").write_bytes(b"\x07" * 500)
    return path


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Run a command in the folder, and return its status, what it printed and what it said."""
    monkeypatch.chdir(folder)

    def run(arguments):
        capsys.readouterr()
        status = main(shlex.split(arguments))
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def unlearned(folder):
    """A run whose networks have hardly moved, so that nothing that it compares is a finding."""
    settings = {"epochs": 4, "fractions": (), "stage2_from": (), "n_features": 0, "learning_rate": 1e-6}
    few = {"n_train": 40, "n_test": 20, "n_kernel": 20, "network": "mlp", "test_steps": 1, "train_steps": 1}
    regimes = ("benign", "adversarial")
    KernelEvolution(regimes=regimes, **settings, **few).run(folder / "unlearned", progress=False)


@pytest.mark.slow
def test_no_command_gives_verdicts_on_a_network_that_has_not_learned(run, unlearned):
    why = (
        r"the benign network has learned too little: its clean accuracy is 0\.\d+, and verdicts count from 0\.550"
    )
    status, printed, _ = run("report unlearned --overwrite")
    assert status == 0 and re.search(rf"^No verdicts: {why}", printed, re.MULTILINE)
    assert " holds:" not in printed and " does not hold:" not in printed and "claim 5a no verdict:" in printed
    claims = json.loads(run("report unlearned --json --overwrite")[1])["claims"]
    assert {claim["verdict"] for claim in claims} == {"no verdict", "not tested"}
    assert not any(claim["counts"] for claim in claims)
    assert all(re.match(why, claim["reason"]) for claim in claims if claim["verdict"] == "no verdict")
    assert all(claim["reason"].startswith("needs ") for claim in claims if claim["verdict"] == "not tested")
    found = json.loads(run("info unlearned --json")[1])
    assert re.match(why, found["no verdicts"]) and "hold" not in found["claims"]
    _, printed, _ = run("evolve --out unlearned")
    assert re.search(rf"^No verdicts: {why}", printed, re.MULTILINE)
    found = json.loads(run("evolve --out unlearned --json")[1])
    assert found["counts"] is False and re.match(why, found["reason"])


PGD_3 = "--model net.ntk --data digits --n-test 40 --attack pgd --steps 3"


@pytest.mark.slow
def test_evaluate_gives_the_accuracies_of_the_library_at_each_radius(run):
    status, out, _ = run(f"evaluate {PGD_3} --epsilon 0.02 0.1 --n-check 0 --json")
    found = json.loads(out)
    assert status == 0 and found["epsilons"] == [0.02, 0.1] and found["checks"] == []
    estimator = load("net.ntk")
    assert found["clean_accuracy"] == estimator.score(X, SPLITS.y_test)
    robust = robust_accuracy(estimator, X, SPLITS.y_test, PGD(0.02, n_steps=3))
    assert found["accuracies"]["pgd"][0] == robust
    assert found["accuracies"]["pgd"][1] <= robust <= found["clean_accuracy"]
    status, out, _ = run(f"evaluate {PGD_3} --epsilon 0.02 0.1 --n-check 0")
    assert f"{robust:.3f} [" in out and "to be believed" not in out


@pytest.mark.slow
def test_evaluate_ends_with_status_1_where_a_check_fails(run, monkeypatch):
    arguments = f"evaluate {PGD_3} --epsilon 0.05 --n-check 20"
    status, out, _ = run(arguments)
    assert "ok    the model is deterministic" in out and status == ("FAIL" in out)
    # one step of almost no length is no attack: more steps break more
    weak = PGD(0.05, n_steps=1, step_size=1e-4, random_start=False)
    monkeypatch.setattr("ntkrobust_sk.cli.named_attacks.make_attack", lambda *_, **__: weak)
    status, out, _ = run(arguments)
    assert status == 1 and "FAIL" in out


@pytest.mark.slow
def test_certify_gives_the_library_s_accuracies_at_several_radii(run):
    options = "certify --model net.ntk --data digits --n-test 40 --sigma 0.1 --n-samples 200"
    status, out, _ = run(f"{options} --radius 0 1/10 --json")
    found = json.loads(out)
    expected = certified_accuracy(load("net.ntk"), X, SPLITS.y_test, [0, 0.1], sigma=0.1, n_samples=200)
    assert status == 0 and found["certified_accuracies"] == expected.tolist() and found["radii"] == [0, 0.1]
    _, out, _ = run(options)
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["0", "0.05", "0.1", "0.2"]


@pytest.mark.slow
def test_gram_writes_the_library_s_matrix_and_goes_on_with_it(run, tmp_path):
    out = tmp_path / "K.zarr"
    options = f"gram --data digits --n-train 30 --n-test 40 --out {out}"
    status, printed, _ = run(f"gram --model model.ntk --data digits --n-train 30 --n-test 40 --out {out} --json")
    found = json.loads(printed)
    K = read_gram(out)
    few = load_splits("digits", n_train=30, n_test=40)
    np.testing.assert_allclose(K, gram("trace", load("model.ntk"), few.X), rtol=1e-5)
    assert status == 0 and found["shape"] == [30, 30] and 1 <= found["measures"]["effective_rank"] <= 30
    # an estimator's network is the same function
    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob("c/*/*"))
    assert run(f"{options} --model net.ntk")[0] == 0
    assert sorted((path, path.stat().st_mtime_ns) for path in out.rglob("c/*/*")) == before
    status, _, said = run(f"{options} --model net.ntk --kernel pseudo")
    assert status == 2 and "K.zarr" in said
    assert set(KINDS) == set(KERNELS)


def test_report_is_written_again_and_elsewhere_but_not_over_a_file(run, tmp_path):
    status, out, _ = run("report run --json")
    found = json.loads(out)
    assert status == 0 and Path(found["report"]).read_text().startswith("<!doctype html>")
    assert {claim["verdict"] for claim in found["claims"]} == {"not tested"}
    other = tmp_path / "other.html"
    assert run(f"report run --out {other}")[0] == 0 and other.exists()
    status, _, said = run(f"report run --out {other}")
    assert status == 2 and "is there already; give another one, or --overwrite" in said
    assert run(f"report run --out {other} --overwrite")[0] == 0


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("net.ntk", ["AdversarialKernelTrainer", "n_params", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9", "scikit-learn"]),
        ("model.ntk", ["holds                 Model"]),
        ("run", ["results               3 of 3", "mlp", "not tested"]),
        ("two.npz", ["X                     float32 (6, 6)"]),
    ],
)
def test_info_says_what_is_in_a_file(path, parts, run):
    status, out, said = run(f"info {path}")
    assert status == 0 and said == "" and [part for part in parts if part not in out] == []


def test_info_says_what_is_here_and_what_is_missing(run, monkeypatch):
    status, out, _ = run("info --json")
    found = json.loads(out)
    assert status == 0 and found["packages"]["numpy"] == np.__version__ and found["devices"]
    assert found["memory"] > 2**20 and "cpu cpu" not in found["devices"]
    monkeypatch.setitem(EXTRAS, "nets", ("no-such-package-at-all",))
    _, out, _ = run("info")
    assert "missing: no-such-package-at-all (pip install 'ntkrobust_sk[nets]')" in out


def test_the_extras_of_info_are_those_of_the_package():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    stated = {
        extra: {re.split(r"[\[<>=]", one)[0] for one in needed}
        for extra, needed in project["optional-dependencies"].items()
        if extra not in ("dev", "docs", "all")
    }
    assert {extra: set(names) for extra, names in EXTRAS.items()} == stated | {"gpu": {"cupy-cuda13x"}}


BAD = [
    ("evaluate --model nothing.ntk DIGITS --epsilon 0.1", "there is no file nothing.ntk"),
    ("evaluate --model model.ntk DIGITS --epsilon 0.1", "holds Model, which is no estimator that predicts"),
    ("evaluate --model noise.ntk DIGITS --epsilon 0.1", "noise.ntk cannot be loaded"),
    ("evaluate --model folder DIGITS --epsilon 0.1", "there is no file folder"),
    ("evaluate --model net.ntk --data two.npz --epsilon 0.1 --attack pgd", "6"),
    ("evaluate --model net.ntk DIGITS --epsilon 0.1 --n-check -1", "--n-check must be an integer >= 0"),
    ("evaluate --model net.ntk DIGITS --epsilon 0.1 --n-test 0", "--n-test must be a positive integer"),
    ("evaluate --model net.ntk DIGITS --epsilon 0.1 --random-state -1", "--random-state must be"),
    ("evaluate --model net.ntk DIGITS --epsilon 0.1 --attack pgd pgd", "names an attack twice: pgd pgd"),
    ("evaluate --model net.ntk DIGITS --epsilon 0.1 --attack pgd ddn", "pgd is in linf, ddn is in l2; give"),
    ("evaluate --model net.ntk DIGITS --epsilon 0.1 --attack fgsm --steps 3", "leave --steps out"),
    ("evaluate --model net.ntk DIGITS --epsilon 0.2 0.1", "must be in ascending order, each radius once"),
    ("evaluate --model net.ntk DIGITS --epsilon 0.1 0.1", "--epsilon must be in ascending order"),
    ("attack --model net.ntk DIGITS --epsilon 0.1 inf", "--epsilon must be a finite number >= 0"),
    ("attack --model net.ntk DIGITS --epsilon -1", "--epsilon must be a finite number >= 0"),
    ("attack --model net.ntk DIGITS --epsilon 0.1 --bounds 0 0.5", "out of the bounds 0 to 0.5; give --bounds"),
    ("attack --model net.ntk DIGITS --epsilon 0.1 --bounds 1 0", "bounds must be"),
    ("attack --model net.ntk DIGITS --data-dir . --epsilon 0.1", "--data-dir is the folder of cifar10"),
    ("certify --model net.ntk DIGITS --sigma 0", "--sigma must be a finite number > 0"),
    ("certify --model net.ntk DIGITS --sigma nan", "--sigma must be a finite number > 0"),
    ("certify --model net.ntk DIGITS --sigma 1 --radius 1 0", "--radius must be in ascending order"),
    ("certify --model net.ntk DIGITS --sigma 1 --alpha 0.7", "--alpha must be"),
    ("certify --model net.ntk DIGITS --sigma 1 --n-samples 0", "--n-samples must be a positive integer"),
    ("certify --model net.ntk --data letters --sigma 1", "unknown data 'letters'"),
    ("gram --model flat.joblib DIGITS --out K.zarr", "LogisticRegression, in which there is no network"),
    ("gram --model net.ntk --data two.npz --n-test 2 --out K.zarr", "the network cannot take inputs of shape"),
    ("gram --model net.ntk --data two.npz --out K.zarr", "--n-test 400 takes all 6 examples of two.npz"),
    ("gram --model net.ntk DIGITS --memory much --out K.zarr", "--memory must be bytes or a string such as"),
    ("gram --model net.ntk DIGITS --memory 10B --out K.zarr", "--memory"),
    ("gram --model net.ntk DIGITS --jobs 0 --out K.zarr", "--jobs must"),
    ("gram --model net.ntk DIGITS --n-train 3 --out K.zarr", "3 examples cannot hold one of each"),
    ("gram --model net.ntk DIGITS --out two.npz", "two.npz"),
    ("gram --model net.ntk DIGITS --out folder/../run", "run is there, but is no zarr array"),
    ("report nothing", "RUN nothing is no folder"),
    ("report two.npz", "RUN two.npz is no folder"),
    ("report folder", "folder holds no run"),
    ("report run --out folder", "--out folder is a folder"),
    ("info nothing", "there is no file or folder nothing"),
    ("info folder", "folder is a folder, but no run of evolve"),
    ("info flat.joblib", "flat.joblib is no file of save or of skops"),
    ("info ''", "PATH must be the path of a file or folder, got ''"),
    ("report ''", "RUN must be the path of a file or folder, got ''"),
    ("info noise.ntk", "noise.ntk is no file of save or of skops"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "said"), BAD)
def test_bad_input_is_one_line_that_names_the_thing(arguments, said, run, folder):
    before = sorted(folder.rglob("*"))
    status, out, err = run(arguments.replace("DIGITS", "--data digits"))
    lines = [line for line in err.splitlines() if "runs whatever code" not in line and "tiles:" not in line]
    assert status == 2 and out == "" and len(lines) == 1 and said in lines[0]
    assert lines[0].startswith(f"ntkrobust {arguments.split()[0]}: ")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
def test_several_radii_give_a_file_each_and_none_is_replaced_by_itself(run, tmp_path):
    options = f"attack {PGD_3} --out {tmp_path}/made.npz --epsilon"
    status, out, _ = run(f"{options} 0.02 0.1 --json")
    results = json.loads(out)["results"]
    assert status == 0 and [one["epsilon"] for one in results] == [0.02, 0.1]
    for one in results:
        with np.load(one["out"]) as file:
            assert 1 - file["fooled"].mean() == pytest.approx(one["robust_accuracy"])
            assert np.abs(file["X_adv"].astype(float) - file["X"]).max() <= one["epsilon"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made-0.02.npz", "made-0.1.npz"]
    before = (tmp_path / "made-0.1.npz").read_bytes()
    status, _, said = run(f"{options} 0.05 0.1 --random-state 1")
    assert status == 2 and "made-0.1.npz is there already; give another one, or --overwrite" in said
    assert (tmp_path / "made-0.1.npz").read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_json_has_null_for_what_is_not_finite_and_nothing_else_on_stdout(monkeypatch, capsys):
    def run(options):
        print("said on the way")
        return Answer("text", lambda: {"a": np.array([1, np.nan]), "b": {1: np.float32(np.inf)}, "c": Path("x")})

    monkeypatch.setattr("ntkrobust_sk.cli.info.run", run)
    assert main(["info", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"a": [1, None], "b": {"1": None}, "c": "x"}
    assert captured.err == "said on the way\n" and plain((True, None, "s")) == [True, None, "s"]


@pytest.mark.slow
def test_a_run_that_is_killed_is_resumed_by_the_same_command_and_reported(run, tmp_path):
    out = tmp_path / "run"
    command = (
        "evolve --data digits --network mlp --n-train 100 --n-test 30 --n-kernel 20 --epochs 2 --fractions "
        "--train-steps 2 --test-steps 2 --regimes benign --stage2-epochs 1 --dynamics centered --stage2 benign "
        f"--n-features 0 --batch-size 50 --out {out}"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "ntkrobust_sk", *command.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    results = out / "results.jsonl"
    while process.poll() is None and not (results.exists() and results.read_bytes().count(b"\n")):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    there = results.read_bytes()
    n_there = there.count(b"\n")
    assert process.returncode == -signal.SIGKILL and 1 <= n_there < 7
    status, printed, said = run(f"info {out} --json")
    assert status == 0 and json.loads(printed)["results"] == f"{n_there} of 7"
    status, printed, said = run(f"{command} --json")
    assert status == 0 and json.loads(printed)["results"] == 7 and "benign · epoch 2" in said
    # what was done before the stop is as it was, and not done again
    assert results.read_bytes().startswith(there) and f"{n_there} of 7" in said
    (out / "report.html").unlink()
    status, printed, _ = run(f"report {out}")
    assert status == 0 and "claim " in printed and (out / "report.html").exists()


ZIP = b"PK\x03\x04" + bytes(40)
DAMAGED = {
    "no.npz": ZIP,
    "no.skops": ZIP,
    "no.ntk": b"PK\x03\x04" + bytes(26) + b"ntkrobust_sk.json",
    "empty.ntk": b"",
    "store/zarr.json": b"{",
    "other/zarr.json": b'{"attributes": {}}',
    "list/settings.json": b"[]",
    "changed/settings.json": b'{"sha256": 1}',
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_is_named_and_not_described(name, tmp_path, capsys):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(DAMAGED[name])
    shown = path.parent if path.suffix == ".json" else path
    assert main(["info", str(shown)]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == "" and line.startswith("ntkrobust info: ") and str(shown) in line
