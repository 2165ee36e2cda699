"""AutoAttack on the networks of a run of ``ntkrobust evolve``, beside PGD as the run was scored with it.

    python examples/attack_run.py runs/cifar10 -n 500 --write

attacks those of stage 1 at their last epoch, and all that stage 2 has made of them, the most robust ones first.
Each finding is kept in ``autoattack.jsonl`` in the run's folder, so a stopped run goes on; ``--known`` attacks no
more of them; ``--write`` puts the table into ``docs/reproduction.md``. Both attacks begin anew here, so PGD's
column differs a little from the run's own scores.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from documents import DOCS, write_part

from ntkrobust_sk import AutoAttack, load_experiment, load_trained
from ntkrobust_sk.evolution.running import splits_of

HEAD = "| where it starts | dynamics | training | clean | PGD-{steps} | AutoAttack | brought down by | s |"


def models_of(experiment) -> list[dict]:
    """List what is attacked, as arguments of :func:`load_trained`."""
    last = [{"regime": regime, "epoch": experiment.checkpoints[-1]} for regime in experiment.regimes]
    second = [
        {"regime": regime, "epoch": epoch, "dynamics": dynamics, "training": training}
        for (regime, epoch), dynamics, training in product(
            experiment.starts, experiment.dynamics, experiment.stage2
        )
    ]
    return last + second[::-1]


def attacked(folder: Path, experiment, splits, n: int, seed: int, of: dict) -> dict:
    """Attack one model's first ``n`` test examples by the run's PGD and by AutoAttack."""
    model = load_trained(folder, **of, seed=seed)
    X, y = jnp.asarray(splits.X_test[:n]), jnp.asarray(splits.y_test[:n], jnp.int32)
    key, start = jax.random.key(seed), time.perf_counter()
    by_pgd = experiment.test_attack(model, X, y, key=key)
    report = AutoAttack(experiment.epsilon, norm=experiment.norm).run(model, X, y, key=key)
    return {
        **of,
        "seed": seed,
        "n": n,
        "clean": float(jnp.mean(model(X).argmax(1) == y)),
        "pgd": float(jnp.mean(model(by_pgd).argmax(1) == y)),
        "autoattack": report.robust_accuracy,
        "fallen": {name: int(np.sum(report.fallen_to == at)) for at, name in enumerate(report.names) if at},
        "seconds": time.perf_counter() - start,
    }


def findings(kept: Path) -> list[dict]:
    """Read what was found before; a line that was being written when the process ended is taken out."""
    text = kept.read_text(encoding="utf-8") if kept.exists() else ""
    whole, _, rest = text.rpartition("\n")
    if rest or not text:
        kept.write_text(whole + "\n" if whole else "", encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def row(found: dict) -> str:
    """Write one finding as a row of the table."""
    start = f"{found['regime']}, epoch {found['epoch']:g}, seed {found['seed']}"
    how = f"{found.get('dynamics', 'stage 1')} | {found.get('training', '')}"
    fallen = ", ".join(f"{name} {count}" for name, count in found["fallen"].items() if count)
    numbers = " | ".join(f"{found[name]:.3f}" for name in ("clean", "pgd", "autoattack"))
    return f"| {start} | {how} | {numbers} | {fallen} | {found['seconds']:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("-n", type=int, default=500, help="test examples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--known", action="store_true", help="only what is attacked already")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reproduction.md")
    options = parser.parse_args()
    experiment = load_experiment(options.run)
    kept: Path = options.run / "autoattack.jsonl"
    splits = splits_of(experiment, None)
    if not 1 <= options.n <= len(splits.y_test):
        parser.error(f"-n must be between 1 and the run's {len(splits.y_test)} test examples, got {options.n}")
    there, found = findings(kept), []
    for of in models_of(experiment):
        same = of | {"seed": options.seed, "n": options.n}
        done = next((one for one in there if one | same == one), None)
        if done is None:
            if options.known:
                continue
            try:
                done = attacked(options.run, experiment, splits, options.n, options.seed, of)
            except LookupError as error:
                print(f"left out: {error}")
                continue
            with kept.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(done) + "\n")
        found.append(done)
        print(row(done), flush=True)
    head = HEAD.format(steps=experiment.test_steps)
    lines = [head, "|" + "---|" * head.count(" | ") + "---|", *map(row, found)]
    text = f"{experiment.data}, {experiment.network}, the first {options.n} test images:\n\n" + "\n".join(lines)
    if options.write:
        write_part(DOCS / "reproduction.md", "attack_run.py", text)


if __name__ == "__main__":
    main()
