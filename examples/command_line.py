"""The commands of ``ntkrobust`` one after the other, as docs/guide/command.md shows them.

A small network is trained on the digits and saved; it is evaluated, attacked, certified, and its kernel measured.
A small run of ``evolve`` is killed (SIGKILL) when four results are there, resumed by ``--out`` alone, reported.
Some three minutes on two cores; prints each command and what it printed.

    python examples/command_line.py
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = """
from ntkrobust_sk import PGD, AdversarialKernelTrainer
from ntkrobust_sk.datasets import load_splits
digits = load_splits("digits", n_train=1397, n_test=400)
attack = PGD(epsilon=0.1, n_steps=5)
trainer = AdversarialKernelTrainer("mlp", attack=attack, max_epochs=10, random_state=0)
trainer.fit(digits.X, digits.y).save("robust.ntk")
"""
RUN = (
    "evolve --data digits --network mlp --n-train 200 --n-test 60 --n-kernel 60 --epochs 3 --fractions "
    "--regimes benign adversarial --stage2-epochs 1 --dynamics centered --out runs/small"
)
SAVED = "--model robust.ntk --data digits --n-test 100"
COMMANDS = (
    f"evaluate {SAVED} --attack pgd square --epsilon 0.05 0.1",
    f"attack {SAVED} --attack pgd --epsilon 0.1 --out adversarial.npz",
    f"attack {SAVED} --attack pgd --epsilon 0.1 --out adversarial.npz",
    f"certify {SAVED} --sigma 0.1 --n-samples 1000 --radius 0 0.1 0.2",
    "gram --model robust.ntk --data digits --n-train 200 --out K.zarr",
    "info robust.ntk",
    "info K.zarr",
)
AFTERWARDS = ("evolve --out runs/small", "report runs/small", "info runs/small")


def started(command: str, folder: Path) -> subprocess.Popen:
    """Start ``ntkrobust`` in a folder."""
    arguments = [sys.executable, "-m", "ntkrobust_sk", *command.split()]
    return subprocess.Popen(arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def shown(command: str, folder: Path) -> None:
    """Run a command, and print what it prints, the last state of its line of progress, and its status."""
    print(f"$ ntkrobust {command}")
    process = started(command, folder)
    out, said = process.communicate()
    lines = [line.rpartition("\r")[2].rstrip() for line in said.splitlines()]
    print("\n".join([*(line for line in lines if line), out.rstrip()]))
    print(f"[status {process.returncode}]\n")


def killed_after(command: str, folder: Path, n_results: int) -> None:
    """Start a run, and kill it when so many results are on disk."""
    print(f"$ ntkrobust {command}")
    process, results = started(command, folder), folder / "runs/small/results.jsonl"
    while process.poll() is None and (not results.exists() or len(results.read_text().splitlines()) < n_results):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    print(said.rpartition("\r")[2].rstrip())
    print(f"[killed: status {process.returncode}]\n")


def main() -> None:
    """Print the record."""
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        subprocess.run([sys.executable, "-c", TRAIN], cwd=folder, check=True)
        for command in COMMANDS:
            shown(command, folder)
        killed_after(RUN, folder, 4)
        for command in AFTERWARDS:
            shown(command, folder)


if __name__ == "__main__":
    os.environ.setdefault("TQDM_MININTERVAL", "0.05")
    sys.stdout.reconfigure(line_buffering=True)
    main()
