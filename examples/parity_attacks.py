"""
Do our attacks find what the reference implementations find?
============================================================

One network is trained on digits, its weights are handed to PyTorch, and the same test images are attacked by
this library and by the reference implementations: AutoAttack with its members (PyPI ``pyautoattack``), in all
three norms, and PGD (``foolbox``). Robust accuracies may differ by half a point for AutoAttack and PGD, by one for
a member alone.

The reference's squares never reach an image's last row and column (it draws their corners from one too few), which
on 8 × 8 pixels is a quarter of them. So Square is compared once more on images with one more row and column that
the network does not see. In L2 and L1 the reference's squares are of 3 × 3 pixels or more, ours may be smaller. In
L1 ours steps along features that can still move, the reference's along all. There ours may find more, not less.

Needs ``pip install torch pyautoattack foolbox``. Run ``python examples/parity_attacks.py``; ``--out FILE`` writes
the numbers as JSON, ``--write`` puts the table into ``docs/attacks.md``.
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import torch
from documents import DOCS, write_part
from pyautoattack import AutoAttack as ReferenceAutoAttack
from torch.nn import functional

from ntkrobust_sk import APGD, CNN, FAB, PGD, AdversarialKernelTrainer, AutoAttack, Square, load_digits_images
from ntkrobust_sk.attacks.tiled import attack_in_tiles

N, EPOCHS = 1000, 8
EPSILONS = {"linf": 0.1, "l2": 0.5, "l1": 1.0}
SIGNS = {"linf": "L∞", "l2": "L2", "l1": "L1"}
ROWS = 250
# Allowed differences, in points; 1 for the others.
POINTS = {"AutoAttack": 0.5, "PGD-40": 0.5}


class InTorch(torch.nn.Module):
    """The library's CNN with the same weights: NCHW, and padding as JAX's "SAME" has it."""

    def __init__(self, model):
        super().__init__()
        self.strides = model.network.strides
        self.params = jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), model.variables.params)

    def forward(self, x):
        for i, stride in enumerate(self.strides):
            kernel = self.params[f"conv_{i}"]["kernel"].permute(3, 2, 0, 1)
            pads = []
            for size in (x.shape[3], x.shape[2]):
                total = max((-(-size // stride) - 1) * stride + kernel.shape[2] - size, 0)
                pads += [total // 2, total - total // 2]
            x = functional.conv2d(functional.pad(x, pads), kernel, self.params[f"conv_{i}"]["bias"], stride)
            x = functional.relu(x)
        return x.mean((2, 3)) @ self.params["dense"]["kernel"] + self.params["dense"]["bias"]


class Cropped(torch.nn.Module):
    """A network that does not see the last row and column."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x[:, :, :-1, :-1])


def ours(model, attack, X, y):
    """Robust accuracy and seconds."""
    start = time.perf_counter()
    x_adv = attack_in_tiles(attack, model, X, y, key=jax.random.key(0), rows=ROWS)
    seconds = time.perf_counter() - start
    return float((np.asarray(model(x_adv)).argmax(1) == y).mean()), seconds


def theirs(net, X, y, norm, members):
    """Robust accuracy and seconds of the reference implementation, with some members or all."""
    kind = {"version": "standard"} if members is None else {"version": "custom", "attacks": members}
    attack = ReferenceAutoAttack(net, norm=norm.capitalize(), eps=EPSILONS[norm], seed=0, **kind)
    if members is not None:
        attack.apgd.n_restarts = attack.fab.n_restarts = attack.apgd_targeted.n_restarts = 1
        attack.fab.n_target_classes = attack.apgd_targeted.n_target_classes = 9
        attack.apgd.use_largereps = attack.apgd_targeted.use_largereps = norm == "l1"
    x, labels = torch.from_numpy(X.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y.astype(np.int64))
    start = time.perf_counter()
    x_adv, *_ = attack.run_standard_evaluation(x, labels, batch_size=ROWS)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        return float((net(x_adv).argmax(1) == labels).double().mean()), seconds


def by_foolbox(model, X, y, attack):
    """Robust accuracy and seconds of foolbox's PGD through JAX."""
    import eagerpy
    import foolbox

    fmodel = foolbox.models.JAXModel(lambda x: model(x), bounds=(0, 1))
    pgd = foolbox.attacks.LinfPGD(abs_stepsize=2 * attack.epsilon / attack.n_steps, steps=attack.n_steps)
    fooled, start = [], time.perf_counter()
    for at in range(0, len(X), ROWS):
        x, labels = (eagerpy.astensor(jax.numpy.asarray(part[at : at + ROWS])) for part in (X, y))
        fooled.append(np.asarray(pgd(fmodel, x, labels, epsilons=attack.epsilon)[2].raw))
    return float(1 - np.concatenate(fooled).mean()), time.perf_counter() - start


def measure():
    """Clean accuracy, and robust accuracies and seconds of both by attack."""
    X, y = load_digits_images()
    order = np.random.default_rng(0).permutation(len(X))
    train, test = order[:-N], order[-N:]
    network = CNN(widths=(16, 32), strides=(2, 2))
    trainer = AdversarialKernelTrainer(
        network, attack=PGD(EPSILONS["linf"], n_steps=5), max_epochs=EPOCHS, random_state=0
    ).fit(X[train], y[train])
    model, X, y = trainer.model_, X[test], y[test].astype(np.int32)
    net = InTorch(model).eval()
    with torch.no_grad():
        logits = net(torch.from_numpy(X.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(logits, np.asarray(model(X)), atol=1e-4)
    clean = float((logits.argmax(1) == y).mean())

    wider = np.pad(X, ((0, 0), (0, 1), (0, 1), (0, 0)))
    cropped = jax.tree_util.Partial(lambda model, x: model(x[:, :-1, :-1]), model)
    found = {}

    def note(name, a, b):
        found[name] = {"ours": a, "reference": b}
        print(name, found[name], flush=True)

    for norm, epsilon in EPSILONS.items():
        pairs = {
            "AutoAttack": (AutoAttack(epsilon, norm), None),
            "APGD, cross-entropy": (APGD(epsilon, norm=norm), ["apgd-ce"]),
            "APGD, targeted": (APGD(epsilon, norm=norm, loss="targeted-dlr"), ["apgd-t"]),
            "FAB, targeted": (FAB(epsilon, norm=norm), ["fab-t"]),
            "Square": (Square(epsilon, norm=norm), ["square"]),
        }
        for name, (attack, members) in pairs.items():
            note(f"{SIGNS[norm]}, {name}", ours(model, attack, X, y), theirs(net, X, y, norm, members))
        square = ours(cropped, pairs["Square"][0], wider, y), theirs(Cropped(net), wider, y, norm, ["square"])
        note(f"{SIGNS[norm]}, Square, a row and column more", *square)
    plain = PGD(EPSILONS["linf"], n_steps=40)
    note("L∞, PGD-40", ours(model, plain, X, y), by_foolbox(model, X, y, plain))
    return {"clean": clean, "attacks": found}


def table(clean, attacks):
    """Lines of Markdown, and whether all differences are allowed ones.

    Where both do the same, a difference may have either sign; of Square, and in L1, ours may find more: see above.
    """
    radii = ", ".join(f"{epsilon} in {SIGNS[norm]}" for norm, epsilon in EPSILONS.items())
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "torch", "pyautoattack", "foolbox"))
    lines = [
        f"{N:,} digits, a CNN of {EPOCHS} epochs of adversarial training, clean accuracy {clean:.3f}; epsilon "
        f"{radii}; {versions}.",
        "",
        "| attack | robust, ours | robust, reference | difference, points | allowed |",
        "|---|---|---|---|---|",
    ]
    held = True
    for name, pair in attacks.items():
        (a, _), (b, _) = pair["ours"], pair["reference"]
        points, allowed = round(100 * (a - b), 6), POINTS.get(name.split(", ")[1], 1.0)
        same = name == "L∞, Square, a row and column more" or not ("Square" in name or name.startswith("L1"))
        held &= -allowed <= points <= allowed if same else points <= allowed
        lines.append(f"| {name} | {a:.3f} | {b:.3f} | {points:+.1f} | {'±' if same else '≤'} {allowed} |")
    return lines, held


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--again", type=Path, help="a file that --out wrote: its table, without measuring")
    parser.add_argument("--write", action="store_true", help="put the table into docs/attacks.md")
    options = parser.parse_args()
    found = measure() if options.again is None else json.loads(options.again.read_text())
    lines, held = table(**found)
    print("\n".join(lines))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    if options.write:
        write_part(DOCS / "attacks.md", "parity_attacks.py", "\n".join(lines))
    if not held:
        raise SystemExit("a difference is larger than allowed")


if __name__ == "__main__":
    main()
