"""
How fast are attacks?
=====================

The library's attacks beside the same attacks elsewhere, in one run, on the same machine and the same networks:

- PGD with 40 steps on 256 inputs of 784 features through a network with one hidden layer of 256 units, against one
  function written by hand and compiled as a whole (which must find the same examples), against ``foolbox``, given
  the model as a function and as a compiled one, and against ``adversarial-robustness-toolbox`` (ART); and the
  same on inputs of 64 features, such as digits are, where the cost of a step outside of products counts for more;
- PGD with 10 steps on an RBF support vector machine, against ART;
- AutoAttack on adversarially trained networks, against the reference implementation in PyTorch;
- an attack step on kernel machines that were trained on 500 and on 4,000 points.

``--steps`` prints another table: predictions and attack steps of the four kernel machines of a CNN on digits, in
forward passes of that CNN, beside the least that they take by count.

Needs ``pip install torch foolbox adversarial-robustness-toolbox pyautoattack`` for what is compared with them. Run
``python examples/bench_attacks.py``; ``--out FILE`` writes the numbers as JSON, ``--write`` puts the table into
``docs/attacks.md``. Times are medians of alternating runs, of the second call on, when everything is compiled.
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from documents import (
    BENCHMARKS,
    alternating_seconds,
    bar,
    machine,
    now,
    table_of_bars,
    write_benchmark,
    write_part,
)
from sklearn.svm import SVC

from ntkrobust_sk import CNN, MLP, PGD, AdversarialKernelTrainer, AutoAttack, Model, load_digits_images, perturb
from ntkrobust_sk.attacks.tiled import attack_in_tiles
from ntkrobust_sk.execution.convolutions import with_fast_convolutions
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.execution.tiles import evaluate
from ntkrobust_sk.kernels.ntk import KERNELS
from ntkrobust_sk.kernels.predictors import make_predictor

N, N_FEATURES, FEW_FEATURES, WIDTH, N_CLASSES = 256, 784, 64, 256, 10
ATTACK = PGD(epsilon=0.1, n_steps=40)
# Of AutoAttack: digits that are attacked, and epsilon.
N_DIGITS, EPSILON = 250, 0.1

# %%
# The attack by hand: one ``jit``, one loop, nothing that could be left out.


@jax.jit
def pgd_by_hand(params, x, y, key):
    epsilon, step_size = ATTACK.epsilon, 2 * ATTACK.epsilon / ATTACK.n_steps

    def loss(z):
        hidden = jax.nn.relu(z @ params["dense_0"]["kernel"] + params["dense_0"]["bias"])
        scores = hidden @ params["dense_1"]["kernel"] + params["dense_1"]["bias"]
        return -jnp.take_along_axis(jax.nn.log_softmax(scores), y[:, None], axis=1).sum()

    def step(_, z):
        z = z + step_size * jnp.sign(jax.grad(loss)(z))
        return jnp.clip(x + jnp.clip(z - x, -epsilon, epsilon), 0.0, 1.0)

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x)))
    noise = jax.vmap(lambda k: jax.random.uniform(k, x.shape[1:], minval=-epsilon, maxval=epsilon))(keys)
    return jax.lax.fori_loop(0, ATTACK.n_steps, step, jnp.clip(x + noise, 0.0, 1.0))


def fraction_that_differs(model, y, first, second):
    """Fraction of features; SystemExit unless the two attacks found the same examples.

    The sign of a gradient that is nearly zero depends on rounding, so a few features in ten thousand may go
    the other way, and nothing else may.
    """
    differing = float((jnp.abs(first - second) > 1e-5).mean())
    losses = [optax.softmax_cross_entropy_with_integer_labels(model(z), y) for z in (first, second)]
    gap = float(jnp.abs(losses[0] / losses[1] - 1).max())
    if differing > 5e-3 or gap > 1e-2:
        raise SystemExit(f"the attacks differ in {differing:.1%} of the features and by {gap:.1%} in the loss")
    return differing


def line(case, least, holds, ours, others, detail=""):
    """A row of the table: by how much the other takes longer."""
    shown = f"ours {ours}, the other {others}{detail}"
    return bar(case, least, others / ours, holds(others / ours), shown)


def mlp_and_data(n_features=N_FEATURES):
    """A network at initialisation, inputs and labels."""
    network = MLP(n_outputs=N_CLASSES, widths=(WIDTH,))
    model = Model(network, network.init(jax.random.key(0), (n_features,)))
    rng = np.random.default_rng(0)
    return model, rng.uniform(size=(N, n_features)).astype(np.float32), rng.integers(N_CLASSES, size=N)


def mlp_in_torch(params):
    """The same network in PyTorch."""
    import torch

    layers = []
    for i in range(len(params)):
        kernel, bias = (torch.from_numpy(np.array(params[f"dense_{i}"][name])) for name in ("kernel", "bias"))
        layer = torch.nn.Linear(*kernel.shape)
        layer.weight.data, layer.bias.data = kernel.T.contiguous(), bias
        layers += [torch.nn.ReLU()] * (i > 0) + [layer]
    return torch.nn.Sequential(torch.nn.Flatten(), *layers).eval()


def against_hand_written():
    """PGD-40 against one compiled function."""
    model, x, y = mlp_and_data()
    x, y, key = jnp.asarray(x), jnp.asarray(y), jax.random.key(1)
    calls = (lambda: ATTACK(model, x, y, key=key), lambda: pgd_by_hand(model.variables.params, x, y, key))
    differing = fraction_that_differs(model, y, *(call() for call in calls))
    ours, by_hand = alternating_seconds(*calls, repeats=15)
    detail = f"; {differing:.1e} of the features differ"
    case = f"PGD-40, MLP {N_FEATURES}-{WIDTH}-{N_CLASSES}: one `jax.jit` by hand"
    return line(case, "≥ 0.77", lambda r: r >= 1 / 1.3, ours, by_hand, detail)


def against_foolbox(n_features=N_FEATURES, compiled=True):
    """PGD-40 against foolbox on the same JAX model."""
    import eagerpy
    import foolbox

    model, x, y = mlp_and_data(n_features)
    given = jax.jit(lambda x: model(x)) if compiled else lambda x: model(x)
    fmodel = foolbox.models.JAXModel(given, bounds=(0, 1))
    pgd = foolbox.attacks.LinfPGD(abs_stepsize=2 * ATTACK.epsilon / ATTACK.n_steps, steps=ATTACK.n_steps)
    x, y, key = jnp.asarray(x), jnp.asarray(y), jax.random.key(1)
    theirs = eagerpy.astensors(x, y)
    ours, foolboxs = alternating_seconds(
        lambda: ATTACK(model, x, y, key=key),
        lambda: pgd(fmodel, *theirs, epsilons=ATTACK.epsilon)[1].raw,
        repeats=15,
    )
    case = f"PGD-40, MLP {n_features}-{WIDTH}-{N_CLASSES}: foolbox, given a {'compiled ' * compiled}function"
    return line(case, "≥ 5", lambda r: r >= 5, ours, foolboxs)


def against_art(n_features=N_FEATURES):
    """PGD-40 against ART on the same network in PyTorch."""
    import torch
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    model, x, y = mlp_and_data(n_features)
    classifier = PyTorchClassifier(
        mlp_in_torch(model.variables.params),
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=(n_features,),
        nb_classes=N_CLASSES,
        clip_values=(0.0, 1.0),
    )
    attack = ProjectedGradientDescent(
        classifier,
        eps=ATTACK.epsilon,
        eps_step=2 * ATTACK.epsilon / ATTACK.n_steps,
        max_iter=ATTACK.n_steps,
        num_random_init=1,
        batch_size=N,
        verbose=False,
    )
    on_device, labels, key = jnp.asarray(x), jnp.asarray(y), jax.random.key(1)
    ours, arts = alternating_seconds(
        lambda: ATTACK(model, on_device, labels, key=key),
        lambda: attack.generate(x, np.eye(N_CLASSES)[y]),
        repeats=15,
    )
    case = f"PGD-40, MLP {n_features}-{WIDTH}-{N_CLASSES}: ART"
    return line(case, "≥ 30", lambda r: r >= 30, ours, arts)


def against_art_on_a_machine(n):
    """PGD-10 on n examples and a support vector machine against ART, given fewer; time for one of them."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import SklearnClassifier

    X, y = load_digits_images()
    X, few = X.reshape(len(X), -1), 20
    # ART asks for probabilities, which scikit-learn has deprecated
    svc = SVC(gamma=0.05, probability=True).fit(X[:1000], y[:1000])
    X, y = X[1000 : 1000 + n], y[1000 : 1000 + n]
    attack = ProjectedGradientDescent(
        SklearnClassifier(svc, clip_values=(0, 1)), eps=0.1, eps_step=0.02, max_iter=10, verbose=False
    )
    labels = np.eye(10)[y[:few]]
    plain, least = PGD(0.1, n_steps=10), least_of_a_machine(svc, X, 10)
    # after a call of another library its threads spin for a while, each on a core that ours would use
    ours, alone, arts, _ = alternating_seconds(
        lambda: perturb(svc, X, y, plain),
        least,
        lambda: attack.generate(X[:few], labels),
        lambda: time.sleep(0.3),
        repeats=7,
    )
    robust = svc.score(perturb(svc, X[:few], y[:few], plain), y[:few])
    by_art = svc.score(attack.generate(X[:few], labels), y[:few])
    detail = (
        f", for one of {len(X)} and {few} examples; of those {few}, {robust:.2f} and {by_art:.2f} stand; "
        f"products and exponentials alone {alone.each(len(X))} ({ours / alone:.2f} of it)"
    )
    case = f"PGD-10, RBF-SVC, {n} examples: ART"
    near = ours / alone <= 1.2
    return line(case, "≥ 1,000", lambda r: r >= 1000 or near, ours.each(len(X)), arts.each(few), detail)


def least_of_a_machine(svc, X, n_steps):
    """Return a function that takes the products and exponentials of so many steps, in double precision, alone.

    Each row meets all support vectors, and their kernels all pairs of classes; the gradient goes back through sums
    over the pairs of each class, and the support vectors.
    """
    z, n_classes = np.asarray(svc.support_vectors_, float), len(svc.classes_)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(len(z), n_classes * (n_classes - 1) // 2))

    @jax.jit
    def steps(x, z, weights):
        def step(_, at):
            block = jnp.exp(0.05 * (at @ z.T))
            scores = (block @ weights)[:, :n_classes]
            return at + 1e-9 * ((scores @ weights[:, :n_classes].T) * block) @ z

        return jax.lax.fori_loop(0, n_steps, step, x)

    with enable_x64():
        operands = [jnp.asarray(part, float) for part in (X, z, weights)]

    def call():
        with enable_x64():
            return steps(*operands)

    return call


def against_reference(network, in_torch, name, wanted):
    """AutoAttack against the reference implementation, on an adversarially trained network."""
    import torch
    from pyautoattack import AutoAttack as ReferenceAutoAttack

    X, y = load_digits_images()
    trainer = AdversarialKernelTrainer(network, attack=PGD(EPSILON, n_steps=5), max_epochs=8, random_state=0)
    model = trainer.fit(X[:-N_DIGITS], y[:-N_DIGITS]).model_
    X, y = X[-N_DIGITS:], y[-N_DIGITS:].astype(np.int32)
    net = in_torch(model)
    x, labels = torch.from_numpy(X.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y.astype(np.int64))
    reference = ReferenceAutoAttack(net, norm="Linf", eps=EPSILON, seed=0, version="standard")
    robust = []

    def ours():
        x_adv = attack_in_tiles(AutoAttack(EPSILON), model, X, y, key=jax.random.key(0), rows=N_DIGITS)
        robust.append(float((np.asarray(model(x_adv)).argmax(1) == y).mean()))

    def theirs():
        x_adv, *_ = reference.run_standard_evaluation(x, labels, batch_size=N_DIGITS)
        with torch.no_grad():
            robust.append(float((net(x_adv).argmax(1) == labels).double().mean()))

    a, b = alternating_seconds(ours, theirs, repeats=5)
    least = least_of_autoattack(model, X, y)
    detail = (
        f", {N_DIGITS} digits, robust accuracy {robust[-2]:.3f} and {robust[-1]:.3f}; its forward and backward "
        f"passes alone {1e3 * least:.0f} ms"
    )
    return line(
        f"AutoAttack, {name}: the reference implementation", f"≥ {wanted}", lambda r: r >= wanted, a, b, detail
    )


def least_of_autoattack(model, X, y, rows=72, repeats=500):
    """Return the seconds of the passes that AutoAttack needs for the examples that each member meets.

    APGD takes a gradient for each step and at its start, FAB a gradient and a forward pass for each step, both for
    nine targets, and Square a forward pass for each query. Each pass is measured in a compiled loop.
    """
    attack = AutoAttack(EPSILON)
    left = attack.run(model, X, y, key=jax.random.key(0)).accuracies
    untargeted, targeted, nearest, searched = (share * len(X) for share in left[:-1])
    n_gradients = (untargeted + 9 * targeted) * (attack.n_steps + 1) + 9 * nearest * attack.n_steps
    n_forward = 9 * nearest * attack.n_steps + searched * attack.n_queries
    labels = jnp.asarray(y[:rows])

    @partial(jax.jit, static_argnums=0)
    def passes(taken, model, x):
        return jax.lax.fori_loop(0, repeats, lambda _, x: x + 1e-9 * taken(with_fast_convolutions(model), x), x)

    def forward(model, x):
        return model(x).mean()

    def gradient(model, x):
        return jax.grad(lambda x: optax.softmax_cross_entropy_with_integer_labels(model(x), labels).sum())(x)

    x = jnp.asarray(X[:rows])
    costs = alternating_seconds(
        *(lambda taken=taken: passes(taken, model, x) for taken in (forward, gradient)), repeats=5
    )
    each_forward, each_gradient = (float(cost.each(repeats * rows)) for cost in costs)
    return n_forward * each_forward + n_gradients * each_gradient


def on_an_mlp():
    """AutoAttack on a dense network."""
    return against_reference(MLP(widths=(WIDTH,)), lambda m: mlp_in_torch(m.variables.params), "MLP", 4.5)


def on_a_cnn():
    """AutoAttack on a convolutional network."""
    from parity_attacks import InTorch

    return against_reference(CNN(widths=(16, 32), strides=(2, 2)), lambda m: InTorch(m).eval(), "CNN", 3.5)


def on_kernel_machines():
    """PGD-10 on full-kernel machines of 4,000 and of 500 training points."""
    network = MLP(n_outputs=N_CLASSES, widths=(WIDTH,))
    model = Model(network, network.init(jax.random.key(0), (N_FEATURES,)))
    rng, attack = np.random.default_rng(0), PGD(0.1, n_steps=10)
    X = rng.uniform(size=(4000, N_FEATURES)).astype(np.float32)
    predictors = [
        make_predictor(KERNELS["full"], model, X[:n], rng.normal(size=(n, N_CLASSES)), np.zeros(N_CLASSES))
        for n in (4000, 500)
    ]
    x, y, key = jnp.asarray(X[:N]), jnp.asarray(rng.integers(N_CLASSES, size=N)), jax.random.key(1)
    many, few = alternating_seconds(*(lambda p=p: attack(p, x, y, key=key) for p in predictors), repeats=15)
    case = "PGD-10, full-kernel machine of 4,000 training points: one of 500"
    return line(case, "≥ 0.83", lambda r: r >= 1 / 1.2, many, few)


# %%
# Predictions and steps of the four machines, in forward passes of their network.


def layers_of(network, image_shape):
    """Positions, inputs and outputs of each layer of a CNN."""
    side, channels, found = image_shape[0], image_shape[-1], []
    for width, stride in zip(network.widths, network.strides, strict=True):
        side = -(-side // stride)
        found.append((side**2, network.kernel_size**2 * channels, width))
        channels = width
    return [*found, (1, channels, network.n_outputs)]


def least_operations(kernel, layers, n_targets):
    """Multiply-adds of a prediction and of a step (value and input gradient), for one example of a ReLU network.

    The full kernel's machine is one tangent: each layer takes two products for the tangent and one for the input,
    and in the backward pass as many. The others go forward once and backward for each of R directions; then
    cotangents meet T tangents. Pushed or pulled through the tangents, that is S·R·T·K·O for S positions, K inputs
    and O outputs, and a pulled cotangent is the gradient as well. With gradients formed first it is R·(S + T)·K·O,
    and in a step twice. A step ends with one backward pass.
    """
    passes = [s * k * o for s, k, o in layers]
    forward, first = sum(passes), passes[0]
    if kernel == "full":
        return 3 * forward - first, 6 * forward - 2 * first
    n_directions, n_tangents = {
        "trace": (n_targets, n_targets),
        "class": (n_targets, 1),
        "pseudo": (1, n_targets),
    }[kernel]
    met, met_twice = 0, 0
    for s, k, o in layers:
        apart = s * n_directions * n_tangents * k * o
        formed = n_directions * (s + n_tangents) * k * o
        met, met_twice = met + min(apart, formed), met_twice + min(apart, 2 * formed)
    pulled = forward + n_directions * (forward - first)
    return pulled + met, pulled + met_twice + forward


def steps_of_machines(rows=50, n_steps=40):
    """The table of the four machines, each timed beside a forward pass of its network."""
    X, y = load_digits_images()
    network = CNN(n_outputs=N_CLASSES)
    model = Model(network, network.init(jax.random.key(0), X.shape[1:]))
    dual = np.random.default_rng(0).normal(size=(500, N_CLASSES))
    layers = layers_of(network, X.shape[1:])
    forward = sum(s * k * o for s, k, o in layers)
    attack, key = PGD(EPSILON, n_steps=n_steps), jax.random.key(1)
    some, labels, n_tiles = X[:rows], jnp.asarray(y[:rows].astype(np.int32)), 4
    several = np.tile(some, (n_tiles, 1, 1, 1))
    lines = [
        "| machine | prediction | step | prediction, forward passes | counted | step, forward passes | counted |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, kernel in KERNELS.items():
        predictor = make_predictor(kernel, model, X[:500], dual, np.zeros(N_CLASSES))
        one, prediction, steps = alternating_seconds(
            lambda: evaluate(model, several, rows),
            lambda p=predictor: evaluate(p, several, rows),
            lambda p=predictor: attack(p, some, labels, key=key),
            repeats=9,
        )
        one, prediction, step = one.each(n_tiles), prediction.each(n_tiles), steps.each(n_steps)
        least = [f"{count / forward:.1f}" for count in least_operations(name, layers, N_CLASSES)]
        ratios = f"{prediction / one:.1f} | {least[0]} | {step / one:.1f} | {least[1]}"
        lines.append(f"| {name} | {prediction} | {step} | {ratios} |")
        print(lines[-1], f"a forward pass {one}", flush=True)
    head = f"A forward pass over {rows} digits took {one} ({2 * rows * forward / one / 1e9:.0f} GFLOP/s)."
    return "\n".join([head, "", *lines])


HEAD = "ours, and what takes longer by the factor"
CASES = {
    "by-hand": against_hand_written,
    "foolbox": partial(against_foolbox, compiled=False),
    "foolbox-compiled": against_foolbox,
    "art": against_art,
    "foolbox-few": partial(against_foolbox, FEW_FEATURES),
    "art-few": partial(against_art, FEW_FEATURES),
    **{f"art-svc-{n}": partial(against_art_on_a_machine, n) for n in (100, 300, 797)},
    "machines": on_kernel_machines,
    "autoattack-mlp": on_an_mlp,
    "autoattack-cnn": on_a_cnn,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--write", action="store_true", help="the table into docs/benchmarks.md, too")
    parser.add_argument("--steps", action="store_true", help="the table of the four kernel machines alone")
    options = parser.parse_args()
    lines, at = [], now()
    if options.steps:
        made = f"`python examples/bench_attacks.py --steps`, {at}, on {machine(('jax', 'numpy'))}."
        table = f"{made}\n\n{steps_of_machines()}"
        print(table)
        if options.write:
            write_part(BENCHMARKS, "bench_attacks.py --steps", table)
        return
    for name in options.cases:
        lines.append(CASES[name]())
        print(table_of_bars(HEAD, lines).splitlines()[-1], flush=True)
        if options.write:
            write_benchmark("bench_attacks.py", HEAD, lines, ("jax", "numpy"), at)


if __name__ == "__main__":
    main()
