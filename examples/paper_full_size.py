"""The paper at full size, as far as a clock allows: one command, which goes on where it was stopped.

    python examples/paper_full_size.py --data-dir DIR --minutes 9 --out full_size      # CIFAR-10, ResNet-18
    python examples/paper_full_size.py --plan                  # floors, predictions, memory; nothing runs
    python examples/paper_full_size.py --toy --out toy                                 # 64 digits, anywhere

Stage 1 trains a network adversarially, by the paper's two updates a batch, until its epochs or its share of the
clock are over. Stage 2 trains the centred network on the kernel frozen there. Then the test images are attacked
through that very model: PGD-100 on all of them, APGD on what still stands. With time left, the same on a benignly
trained kernel. Every stage writes what it has, each minute and at its end: states as safetensors, figures as JSON,
each file whole or not at all. Compiled programs are kept in a folder that may travel (``--cache``). What a device
has no memory for is refused before it runs, with what it needs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from gpu_sections import forward_operations

from ntkrobust_sk import APGD, NFGSM, PGD, Clean, MixedPrecision, Model, Network, ResNet18, linearize, train
from ntkrobust_sk._files import write_atomically
from ntkrobust_sk.datasets import load_splits
from ntkrobust_sk.execution.devices import free_bytes
from ntkrobust_sk.execution.memory import readable
from ntkrobust_sk.training import DamagedCheckpointError, initial_state, load_checkpoint, save_checkpoint

# Seconds between two checkpoints.
CHECKPOINT = 60.0
# What a plan counts with: the share of the products' rate that convolutions reach, and seconds to compile a stage.
SHARE, COMPILING = 0.25, 60.0
# Shares of what is left of the clock: stage 1, stage 2, then attacks.
SHARES = {"stage-1": 0.5, "stage-2": 0.45, "pgd": 0.6, "apgd-ce": 0.5, "apgd-t": 0.8}


@dataclass(frozen=True)
class Setting:
    """The sizes of a run."""

    data: str
    n_train: int
    n_test: int
    shape: tuple[int, ...]  # of an image
    network: Network
    epsilon: float  # of the attacks in training and evaluation, L-infinity
    epochs: dict  # of each stage, at most
    steps: int  # of PGD in evaluation
    rows: int  # of a tile of test images
    look: int = 16  # batches between two looks at the clock
    batch_size: int = 128


FULL = Setting(
    "cifar10", 50_000, 10_000, (32, 32, 3), ResNet18(10), 4 / 255, {"stage-1": 20, "stage-2": 10}, 100, 1000
)
TOY = Setting(
    data="digits",
    n_train=64,
    n_test=32,
    shape=(8, 8, 1),
    network=ResNet18(10, width=4),
    epsilon=0.1,
    epochs={"stage-1": 4, "stage-2": 4},
    steps=5,
    rows=8,
    look=4,
    batch_size=16,
)


def main(arguments=None) -> dict:
    """Run what the clock allows, and return what was found."""
    options = parsed(arguments)
    setting = TOY if options.toy else FULL
    setting = replace(setting, rows=options.rows or setting.rows)
    network = setting.network if options.precision is None else MixedPrecision(setting.network, options.precision)
    if options.plan:
        print(plan(setting, network, options))
        return {}
    require_memory(setting, network)
    run = Run(setting, network, options)
    jax.config.update("jax_compilation_cache_dir", str(options.cache or options.out / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    for kernel in ("adversarial", "benign"):
        run.kernel(kernel)
    print(comparison(run.found))
    return run.found


def parsed(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("full_size"), help="folder of figures and states")
    parser.add_argument("--data-dir", help="folder of CIFAR-10's files")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--fast", action="store_true", help="N-FGSM in training instead of PGD-20")
    parser.add_argument("--precision", choices=["bf16", "tf32"], help="of products; JAX's default without it")
    parser.add_argument("--cache", help="folder of compiled programs, which may travel; OUT/compiled without it")
    parser.add_argument("--rows", type=int, help="test images that are attacked at once; fewer take less memory")
    parser.add_argument("--rate", type=float, default=400.0, help="TFLOP/s of products, from which floors follow")
    parser.add_argument("--plan", action="store_true", help="print floors and predicted seconds; run nothing")
    parser.add_argument("--toy", action="store_true", help="64 digits and a narrow network")
    options = parser.parse_args(arguments)
    if not options.minutes > 0 or not options.rate > 0 or (options.rows is not None and options.rows < 1):
        parser.error("--minutes, --rate and --rows must be positive")
    return options


def training_attack(setting, fast):
    """The second of the two updates a batch."""
    return NFGSM(setting.epsilon) if fast else PGD(setting.epsilon, 3 if setting.data == TOY.data else 20)


def plan(setting, network, options) -> str:
    """Return what each stage takes: work counted in forward passes, its floor, its prediction, and its memory."""
    model = Model(network, jax.eval_shape(lambda key: network.init(key, setting.shape), jax.random.key(0)))
    forward = forward_operations(model, setting.shape)
    n_steps = getattr(training_attack(setting, options.fast), "n_steps", 1)
    # an update is a forward and two gradients, a step of an attack a forward and one; linearised, three times that
    per_image = {"stage-1": 2 * 3 + 2 * n_steps, "stage-2": 3 * (2 * 3 + 2 * n_steps)}
    counts = {}
    for stage, passes in per_image.items():
        work = f"{setting.epochs[stage]} epochs of {setting.n_train:,}"
        counts[stage] = work, forward * passes * setting.n_train * setting.epochs[stage]
    # APGD goes on with what still stands: all of it, at worst
    for attack in ("PGD", "APGD-CE", "APGD-T"):
        work = f"{attack}-{setting.steps} on {setting.n_test:,}, linearised"
        counts[attack] = work, forward * 6 * setting.steps * setting.n_test
    lines = [
        f"{forward / 1e9:.3g} GFLOP a forward pass, {options.rate:g} TFLOP/s, of which {SHARE:.0%} are reached",
        "",
        "| stage | work | FLOP | seconds at least | predicted seconds | memory |",
        "|---|---|---|---|---|---|",
    ]
    memory = bytes_needed(setting, network)
    for stage, (work, count) in counts.items():
        floor = count / options.rate / 1e12
        needed = readable(memory.get(stage, memory["attacks"]))
        lines.append(
            f"| {stage} | {work} | {count:.2g} | {floor:.3g} | {COMPILING + floor / SHARE:.3g} | {needed} |"
        )
    budget = 60 * options.minutes
    epoch = forward * per_image["stage-1"] * setting.n_train / options.rate / 1e12 / SHARE
    lines += [
        "",
        f"An epoch of stage 1 is predicted to take {epoch:.3g} s, of {SHARES['stage-1'] * budget:.3g} s for it.",
    ]
    return "\n".join(lines)


def bytes_needed(setting, network) -> dict[str, int]:
    """Count the bytes of each stage: parameters, the optimiser's own, and what a gradient keeps of a batch."""
    variables = jax.eval_shape(lambda key: network.init(key, setting.shape), jax.random.key(0))
    model = Model(network, variables)
    frozen = jax.eval_shape(lambda model: linearize(model, centered=True), model)
    parameters = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables.params))

    def kept(model, rows):
        x = jax.ShapeDtypeStruct((rows, *setting.shape), jnp.float32)
        pullback = jax.eval_shape(lambda model, x: jax.vjp(lambda model, x: model(x), model, x)[1], model, x)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))

    # parameters, gradients, momentum, and where they were frozen; the working space is about what is kept
    return {
        "stage-1": 4 * parameters + 2 * kept(model, setting.batch_size),
        "stage-2": 5 * parameters + 2 * kept(frozen, setting.batch_size),
        "attacks": 2 * parameters + 2 * kept(frozen, setting.rows),
    }


def require_memory(setting, network) -> None:
    """Raise MemoryError where the device has less memory than a stage needs; some do not say what they have."""
    free = free_bytes(jax.devices()[0])
    for stage, needed in bytes_needed(setting, network).items() if free is not None else ():
        if needed > free:
            way = f"--rows {setting.rows // 2}" if stage == "attacks" else "a larger device"
            raise MemoryError(
                f"{stage} takes about {readable(needed)}, but JAX has {readable(free)} of {jax.devices()[0]}: "
                f"take {way}, or let JAX have more of it (XLA_PYTHON_CLIENT_MEM_FRACTION)"
            )


def comparison(found) -> str:
    """Return a table of what was predicted after the first look and what it took, where there was time for it."""
    lines = ["| kernel | stage | predicted | measured | measured / predicted |", "|---|---|---|---|---|"]
    for kernel in ("adversarial", "benign"):
        for stage, figures in found.get(kernel, {}).items():
            if (measured := figures.get("seconds after the prediction")) is not None:
                predicted = figures["predicted"]["in all"]
                cells = f"{predicted:.2f} s | {measured:.2f} s | {measured / predicted:.2f}"
                lines.append(f"| {kernel} | {stage} | {cells} |")
    return "\n".join(lines)


class Run:
    """A run: its data, its clock, and its figures, which are on disk after each."""

    def __init__(self, setting, network, options):
        self.setting, self.network, self.options = setting, network, options
        self.end = time.monotonic() + 60 * options.minutes
        self.splits = load_splits(
            setting.data, options.data_dir, n_train=setting.n_train, n_test=setting.n_test, random_state=0
        )
        self.attack = training_attack(setting, options.fast)
        # of which no number of a stage depends
        self.of = f"{replace(setting, rows=0, look=0)} {network} {self.attack}"
        self.file = options.out / "full_size.json"
        device = jax.devices()[0]
        self.found = figures_in(self.file, self.of) | {
            "device": getattr(device, "device_kind", device.platform),
            "jax": jax.__version__,
            "settings": {"of": self.of, "minutes": options.minutes, "precision": options.precision},
        }
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            self.write()
        except OSError as error:
            raise OSError(f"--out must be a folder that can be written, got {options.out}: {error}") from error

    def note(self, kernel: str, **figures) -> None:
        """Add figures and write the file."""
        self.found.setdefault(kernel, {}).update(figures)
        self.write()
        print(kernel, json.dumps(figures), flush=True)

    def write(self) -> None:
        """Put what was found on the disk."""
        write_atomically(self.file, json.dumps(self.found, indent=2).encode())

    def deadline(self, stage: str) -> float:
        """When a stage has used its share of what is left of the clock."""
        now = time.monotonic()
        return now + SHARES[stage] * max(self.end - now, 0)

    def kernel(self, kernel: str) -> None:
        """Both stages and the attacks, with the kernel of a network trained so."""
        if time.monotonic() >= self.end:
            return
        variables = self.network.init(jax.random.key(0), self.setting.shape)
        attacks = (Clean(), self.attack) if kernel == "adversarial" else (Clean(),)
        learned = self.trained(kernel, "stage-1", Model(self.network, variables), 0.1, attacks, False)
        if learned is None:
            return
        frozen = linearize(learned, centered=True)
        model = self.trained(kernel, "stage-2", frozen, 0.01, (Clean(), self.attack), True)
        if model is not None:
            self.attacked(kernel, model)

    def trained(self, kernel, stage, model, rate, attacks, freeze_state) -> Model | None:
        """The model when its epochs or its time are over; None where not one epoch fits."""
        optimizer = optax.sgd(rate, momentum=0.9)
        state = initial_state(model, jax.random.key(1), optimizer)
        path = self.options.out / f"{kernel}-{stage}.safetensors"
        of = f"{self.of} {kernel} {stage}"
        if stage == "stage-2":
            # a kernel that was trained further is another one
            of += f" from epoch {self.found[kernel]['stage-1']['epochs']}"
        try:
            state = load_checkpoint(path, state, of)
        except FileNotFoundError:
            pass
        except DamagedCheckpointError as error:
            print(f"{error}; {stage} begins again", flush=True)
        per_epoch = -(-self.setting.n_train // self.setting.batch_size)
        first, last = int(state.step), per_epoch * self.setting.epochs[stage]
        look = self.setting.look
        steps = [*range(first + look, last, look), last] if first < last else []
        figures = self.found.setdefault(kernel, {})
        if not steps and figures.get(stage, {}).get("epochs") == first / per_epoch:
            return state.model
        # of the model that is trained on from here they will be no more
        stages = list(SHARES)
        for later in stages[stages.index(stage) :]:
            figures.pop(later, None)
        states = train(
            state,
            self.splits.X,
            self.splits.y,
            optimizer=optimizer,
            attacks=attacks,
            epochs=[step / per_epoch for step in steps],
            batch_size=self.setting.batch_size,
            freeze_state=freeze_state,
        )
        deadline, stamps, predicted = self.deadline(stage), [saved := time.monotonic()], None
        for state, step in zip(states, steps, strict=True):
            jax.block_until_ready(state.model)
            stamps.append(time.monotonic())
            if predicted is None and len(stamps) == 3:
                # the first look compiles; the second one is what all others will take
                each = (stamps[2] - stamps[1]) / (steps[1] - steps[0])
                predicted = {"seconds an epoch": each * per_epoch, "in all": each * (last - step)}
                if each * (per_epoch - (steps[1] - first)) > deadline - stamps[-1] and step < per_epoch:
                    self.note(kernel, **{stage: {"refused": "not one epoch fits", "predicted": predicted}})
                    save_checkpoint(path, state, of)
                    return None
            if stamps[-1] > deadline:
                break
            if stamps[-1] - saved > CHECKPOINT:
                save_checkpoint(path, state, of)
                saved = time.monotonic()
        save_checkpoint(path, state, of)
        measured = stamps[-1] - stamps[2] if len(stamps) > 3 else None
        figures = {
            "epochs": int(state.step) / per_epoch,
            "clean accuracy": self.accuracy(state.model, self.splits.X_test),
            "predicted": predicted,
            "seconds after the prediction": measured,
            "seconds to the first look": stamps[1] - stamps[0] if len(stamps) > 1 else None,
        }
        self.note(kernel, **{stage: figures})
        return state.model

    def accuracy(self, model, X) -> float:
        """The share of test images, as given, that is answered rightly."""
        tiles = [X[i : i + self.setting.rows] for i in range(0, len(X), self.setting.rows)]
        answers = np.concatenate([np.asarray(answers_of(model, tile)) for tile in tiles])
        return float((answers == self.splits.y_test).mean())

    def attacked(self, kernel, model) -> None:
        """Robust accuracy under PGD, then under APGD on what stands, each on as many images as time allows."""
        epsilon, rows = self.setting.epsilon, self.setting.rows
        X, y = self.splits.X_test.astype(np.float32), self.splits.y_test
        there = {name: figures.get("images", 0) for name, figures in self.found[kernel].items()}
        if there.get("apgd-t") == len(X):
            return
        stands = np.ones(len(X), bool)
        attacks = {
            "pgd": PGD(epsilon, self.setting.steps),
            "apgd-ce": APGD(epsilon, self.setting.steps),
            "apgd-t": APGD(epsilon, self.setting.steps, loss="targeted-dlr"),
        }
        seen = len(X)
        for name, attack in attacks.items():
            deadline, done, stamps = self.deadline(name), 0, [time.monotonic()]
            for i in range(0, seen, rows):
                if time.monotonic() > deadline:
                    break
                tile = slice(i, min(i + rows, len(X)))
                at = np.resize(np.arange(tile.start, tile.stop), rows)  # the last tile repeats its own images
                if stands[tile].any():
                    examples = attack(model, jnp.asarray(X[at]), jnp.asarray(y[at]), key=jax.random.key(i))
                    held = np.asarray(answers_of(model, examples)) == y[at]
                    stands[tile] &= held[: tile.stop - tile.start]
                    stamps.append(time.monotonic())
                done = tile.stop
            seen = done
            if not seen:
                return
            figures = {"images": seen, "robust accuracy": float(stands[:seen].mean())}
            if len(stamps) > 3:
                # the first tile compiles, and the second one is what the others take
                figures["predicted"] = {"in all": (stamps[2] - stamps[1]) * (len(stamps) - 3)}
                figures["seconds after the prediction"] = stamps[-1] - stamps[2]
            if seen >= there.get(name, 0):  # a shorter look again takes nothing away
                self.note(kernel, **{name: figures})


def figures_in(file, of) -> dict:
    """Return the figures of a run of these settings, and nothing where there is none."""
    if not file.exists():
        return {}
    try:
        there = json.loads(file.read_text())
        written = there["settings"]["of"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: move it away, and its states are read again") from error
    if written != of:
        raise ValueError(
            f"{file.parent} holds the run of other settings, which stays as it is: {written}. Give another --out"
        )
    return there


@jax.jit
def answers_of(model, x):
    """The classes that a model answers with."""
    return model(x).argmax(1)


if __name__ == "__main__":
    try:
        main()
    except (ImportError, MemoryError, OSError, ValueError) as error:
        # by the option's name, where the library has its argument's
        reason = re.sub("(leave|[Pp]ass) data_dir", r"\1 --data-dir", str(error))
        sys.exit(f"{type(error).__name__}: {reason}")
