"""
How fast is training on a CPU?
==============================

Epochs of plain and of two-step adversarial training (one clean update and one on PGD-5 examples a batch) on images
of 32 × 32 × 3, beside the same networks and steps in PyTorch, in both of its layouts, in turn: the small CNN with
batches of 128, ResNet-18 with batches of 32. The library's rows count whole epochs, order and transfer included.

``--forms`` prints a table instead: for the convolutions of three networks, how long each form of each of their
three computations takes inside of a compiled loop, which one the library takes, and what it loses to the best. The
costs in ``ntkrobust_sk/execution/convolution_forms.py`` are fitted to it.

Needs ``pip install torch`` for what is compared with. Run ``python examples/bench_training.py``; ``--write`` puts
the table into ``docs/benchmarks.md``.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from documents import alternating_seconds, bar, now, table_of_bars, write_benchmark

from ntkrobust_sk import CNN, PGD, Model, ResNet18, train
from ntkrobust_sk.attacks import Clean
from ntkrobust_sk.execution.convolution_forms import FORWARD, OF_FILTERS, OF_IMAGES, Convolution, cheapest
from ntkrobust_sk.training.optimizers import sgd

try:
    import torch
    from torch import nn
except ImportError:
    torch = nn = None

HEAD, EPSILON, N_STEPS, STEP_SIZE = "training", 8 / 255, 5, 2 / 255
TWO_STEP = (Clean(), PGD(EPSILON, N_STEPS, step_size=STEP_SIZE))


def images(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw images and labels: what they show does not matter for time."""
    rng = np.random.default_rng(0)
    return rng.uniform(size=(n, 32, 32, 3)).astype(np.float32), rng.integers(0, 10, n)


def our_epochs(network, attacks, n: int, batch_size: int):
    """Return a function that trains for one more epoch at each call."""
    X, y = images(n)
    model = Model(network, network.init(jax.random.key(0), X.shape[1:]))
    states = train(
        model, X, y, key=jax.random.key(1), optimizer=sgd(), attacks=attacks, epochs=10**6, batch_size=batch_size
    )
    return lambda: next(states).loss


# %%
# The same networks in PyTorch.


def cnn_in_torch():
    """Build the CNN: four 3×3 convolutions, average pooling, one dense layer."""
    channels, strides = (3, 32, 32, 64, 64), (1, 2, 2, 1)
    layers = []
    for c, o, stride in zip(channels, channels[1:], strides, strict=False):
        layers += [nn.Conv2d(c, o, 3, stride, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def resnet_in_torch():
    """Build ResNet-18 for small images: a 3×3 stem, no pooling before the last layer."""

    class Block(nn.Module):
        def __init__(self, c, o, stride):
            super().__init__()
            self.branch = nn.Sequential(
                nn.Conv2d(c, o, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(o),
                nn.ReLU(inplace=True),
                nn.Conv2d(o, o, 3, 1, padding=1, bias=False),
                nn.BatchNorm2d(o),
            )
            shortcut = nn.Sequential(nn.Conv2d(c, o, 1, stride, bias=False), nn.BatchNorm2d(o))
            self.shortcut = nn.Identity() if stride == 1 else shortcut

        def forward(self, x):
            return torch.relu(self.branch(x) + self.shortcut(x))

    layers, c = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)], 64
    for o, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(c, o, stride), Block(o, o, 1)]
        c = o
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def torch_epochs(build, attacks, n: int, batch_size: int, layout: str):
    """Return a function that trains for one more epoch at each call, in a layout of PyTorch."""
    memory = getattr(torch, layout)
    network = build().to(memory_format=memory)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    X, y = images(n)
    X = torch.from_numpy(X.transpose(0, 3, 1, 2).copy()).contiguous(memory_format=memory)
    y = torch.from_numpy(y)

    def update(x, labels):
        network.train()
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()

    def pgd(x, labels):
        network.eval()
        z = (x + torch.empty_like(x).uniform_(-EPSILON, EPSILON)).clamp(0, 1)
        for _ in range(N_STEPS):
            z.requires_grad_(True)
            loss = nn.functional.cross_entropy(network(z), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, z)
            with torch.no_grad():
                z = x + (z + STEP_SIZE * gradient.sign() - x).clamp(-EPSILON, EPSILON)
                z = z.clamp(0, 1)
        return z.detach()

    def epoch():
        for rows in torch.randperm(n).split(batch_size):
            x, labels = X[rows].contiguous(memory_format=memory), y[rows]
            update(x, labels)
            if len(attacks) > 1:
                update(pgd(x, labels), labels)

    return epoch


# %%
# Side by side.

CASES = {
    "CNN, plain": (CNN(n_outputs=10), cnn_in_torch, (Clean(),), 2048, 128, 0.55, 5),
    "CNN, two-step PGD-5": (CNN(n_outputs=10), cnn_in_torch, TWO_STEP, 2048, 128, 0.7, 5),
    "ResNet-18, plain": (ResNet18(n_outputs=10), resnet_in_torch, (Clean(),), 128, 32, None, 5),
    "ResNet-18, two-step PGD-5": (ResNet18(n_outputs=10), resnet_in_torch, TWO_STEP, 64, 32, None, 5),
}


def run_case(name: str) -> dict:
    """Time one case, in turn with PyTorch's layouts where that is installed."""
    network, build, attacks, n, batch_size, least, repeats = CASES[name]
    ours = our_epochs(network, attacks, n, batch_size)
    for _ in range(3):  # compiles, and grows to the chunks that are kept
        ours()
    layouts = ("contiguous_format", "channels_last") if torch else ()
    theirs = [torch_epochs(build, attacks, n, batch_size, layout) for layout in layouts]
    found = alternating_seconds(ours, *theirs, repeats=repeats)
    rates = [n / seconds for seconds in found]
    detail = f"{rates[0]:.0f} images a second"
    if not theirs:
        return bar(name, "stated", "PyTorch is not installed", True, detail)
    detail += f"; PyTorch {rates[1]:.0f} (channels first), {rates[2]:.0f} (channels last)"
    ratio = rates[0] / max(rates[1:])
    wanted = "stated" if least is None else f"≥ {least}"
    return bar(f"{name}, ours / PyTorch", wanted, f"{ratio:.2f}", least is None or ratio >= least, detail)


# %%
# Forms of convolutions.

SHAPES = {
    "CNN, 32 × 32, batch 128": [
        (128, 32, 3, 32, 1, 3),
        (128, 32, 32, 32, 2, 3),
        (128, 16, 32, 64, 2, 3),
        (128, 8, 64, 64, 1, 3),
    ],
    "CNN, 32 × 32, 32 rows": [
        (32, 32, 3, 32, 1, 3),
        (32, 32, 32, 32, 2, 3),
        (32, 16, 32, 64, 2, 3),
        (32, 8, 64, 64, 1, 3),
    ],
    "CNN, digits, batch 50": [
        (50, 8, 1, 32, 1, 3),
        (50, 8, 32, 32, 2, 3),
        (50, 4, 32, 64, 2, 3),
        (50, 2, 64, 64, 1, 3),
    ],
    "ResNet-18, batch 16": [
        (16, 32, 3, 64, 1, 3),
        (16, 32, 64, 64, 1, 3),
        (16, 32, 64, 128, 2, 3),
        (16, 32, 64, 128, 2, 1),
        (16, 16, 128, 128, 1, 3),
        (16, 16, 128, 256, 2, 3),
        (16, 16, 128, 256, 2, 1),
        (16, 8, 256, 256, 1, 3),
        (16, 8, 256, 512, 2, 3),
        (16, 4, 512, 512, 1, 3),
    ],
}


def convolution(n, size, c, o, stride, window) -> Convolution:
    """Return the shapes of a convolution of square images with padding "SAME"."""
    out = -(-size // stride)
    around = max((out - 1) * stride + window - size, 0)
    padding = (around // 2, around - around // 2)
    return Convolution(
        (n, size, size, c), (window, window, c, o), (n, out, out, o), (stride, stride), (padding, padding)
    )


def looped(compute, n_steps: int):
    """Return the computation n times in one compiled loop, each one after the other.

    What comes in is new in each step, as in a network: the result of a multiplication and a ReLU. What stayed the
    same could be copied once, before the loop.
    """

    def run(a, b):
        def step(_, carried):
            scale, _ = carried
            found = compute(*(jax.nn.relu(side * scale) for side in (a, b)))
            return 1 + 1e-30 * found.ravel()[0], found

        nothing = jnp.zeros(jax.eval_shape(compute, a, b).shape)
        return jax.lax.fori_loop(0, n_steps, step, (jnp.ones(()), nothing))

    return jax.jit(run)


def table_of_forms(repeats: int = 3) -> str:
    """Time all forms of all shapes, and say what is chosen."""
    rng, lines = np.random.default_rng(0), []
    for network, shapes in SHAPES.items():
        chosen_total = best_total = 0.0
        lines += [f"\n{network}\n", "| convolution | computation | milliseconds | taken |", "|---|---|---|---|"]
        for shape in shapes:
            of = convolution(*shape)
            x, w, delta = (
                jnp.asarray(rng.normal(size=s).astype(np.float32)) for s in (of.images, of.filters, of.outputs)
            )
            name = f"{shape[1]}² {shape[2]}→{shape[3]}, {shape[5]} × {shape[5]}, stride {shape[4]}"
            for what, forms, operands in (
                ("forward", FORWARD, (x, w)),
                ("gradient of images", OF_IMAGES, (delta, w)),
                ("gradient of filters", OF_FILTERS, (x, delta)),
            ):
                n_steps = 8 if np.prod(of.images) > 10**6 else 64
                loops = [partial(looped(partial(form.compute, of), n_steps), *operands) for form in forms]
                found = {
                    form.compute.__name__: seconds.each(n_steps)
                    for form, seconds in zip(forms, alternating_seconds(*loops, repeats=repeats), strict=True)
                }
                chosen = cheapest(forms, of).__name__
                chosen_total += found[chosen]
                best_total += min(found.values())
                times = ", ".join(f"{form} {1e3 * seconds:.3g}" for form, seconds in found.items())
                lines.append(f"| {name} | {what} | {times} | {chosen} |")
        lines.append(
            f"\nTaken {1e3 * chosen_total:.1f} ms, best {1e3 * best_total:.1f} ms: {chosen_total / best_total:.3f}"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--forms", action="store_true", help="the table of forms instead")
    parser.add_argument("--write", action="store_true", help="the table into docs/benchmarks.md, too")
    options = parser.parse_args()
    if options.forms:
        print(table_of_forms())
        return
    lines, at, packages = [], now(), ("jax", "numpy", *(("torch",) if torch else ()))
    for name in options.cases:
        lines.append(run_case(name))
        print(table_of_bars(HEAD, lines).splitlines()[-1], flush=True)
        if options.write:
            write_benchmark("bench_training.py", HEAD, lines, packages, at)


if __name__ == "__main__":
    main()
