"""APGD, FAB, Square and AutoAttack: the algorithms written plainly, closed forms, and what they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from norms_in_numpy import DUALS, lengths
from scipy.optimize import linprog, minimize
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from ntkrobust_sk import APGD, CNN, FAB, FMN, MLP, PGD, AutoAttack, Model, Square, as_model
from ntkrobust_sk.attacks.apgd import _looks, _radii, _target
from ntkrobust_sk.attacks.autoattack import flags, row_sizes
from ntkrobust_sk.attacks.losses import dlr, example_losses, margin, targeted_dlr
from ntkrobust_sk.attacks.norms import NORMS
from ntkrobust_sk.attacks.planes import to_plane
from ntkrobust_sk.attacks.square import _bump, _sizes
from ntkrobust_sk.attacks.threat_model import Ball
from ntkrobust_sk.attacks.tiled import attack_in_tiles
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.execution.tiles import tile_rows

KEY = jax.random.key(0)
C, N = 5, 40
SHAPES = {"rows": (12,), "images": (5, 4, 2)}
each_norm = pytest.mark.parametrize("norm", NORMS)
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def network(shape=(12,), seed=0, network=None):
    network = network or MLP(n_outputs=C, widths=(16,))
    params, state = network.init(jax.random.key(seed), shape)
    return Model(network, type(network.init(KEY, shape))(jax.tree.map(lambda leaf: 3 * leaf, params), state))


def data(model, shape=(12,), n=N):
    """Inputs and the model's own answers."""
    X = np.random.default_rng(1).uniform(0.05, 0.95, size=(n, *shape)).astype(np.float32)
    return X, np.array(model(X).argmax(1), np.int32)


def linear(weights, offset=0.0):
    weights = jnp.asarray(weights)
    return jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w + offset, weights)


def examples(attack, model, X, y, key=KEY):
    """In tiles of one size, so that little is compiled twice."""
    return attack_in_tiles(attack, model, X, y, key=key, rows=N)


def accuracy(model, X, y):
    return float((np.asarray(model(X)).argmax(1) == y).mean())


# Every attack


def everything(norm, epsilon=0.1, bounds=(0.0, 1.0)):
    n, common = 20, {"norm": norm, "bounds": bounds}
    found = {loss: APGD(epsilon, n, loss=loss, n_targets=2, **common) for loss in ("ce", "dlr", "targeted-dlr")}
    found["fab"] = FAB(epsilon, n, n_targets=2, **common)
    found["square"] = Square(epsilon, 200, **common)
    found["autoattack"] = AutoAttack(epsilon, n_steps=n, n_queries=200, n_targets=2, **common)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("norm, shape", [*((norm, (12,)) for norm in NORMS), ("linf", (5, 4, 2))], ids=str)
def test_examples_lie_in_ball_and_bounds_and_fool_more_than_the_inputs_do(norm, shape):
    model = network(shape)
    X, y = data(model, shape)
    epsilon = {"linf": 0.15, "l2": 0.6, "l1": 1.5}[norm]
    for name, attack in everything(norm, epsilon).items():
        x_adv = examples(attack, model, X, y)
        assert x_adv.shape == X.shape and x_adv.dtype == np.float32
        assert x_adv.min() >= 0 and x_adv.max() <= 1
        assert lengths(x_adv.astype(float) - X, norm).max() <= epsilon, name
        assert accuracy(model, x_adv, y) < 0.9, name
        np.testing.assert_array_equal(x_adv, examples(attack, model, X, y))


@pytest.mark.slow
@each_norm
def test_an_example_does_not_depend_on_the_others(norm):
    model = network()
    X, y = data(model)
    for name, attack in everything(norm, 0.2).items():
        together = examples(attack, model, X, y)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(N))
        alone = examples(attack, model, X[7:9], y[7:9], keys[7:9])
        np.testing.assert_allclose(alone, together[7:9], atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "bounds", [None, (np.linspace(-0.2, 0, 12), np.linspace(1, 1.3, 12))], ids=["none", "each"]
)
def test_bounds_may_be_missing_or_differ_between_features(bounds):
    model = network()
    X, y = data(model)
    for name in ("ce", "fab", "square"):
        x_adv = examples(everything("linf", 0.4, bounds)[name], model, X, y)
        assert np.abs(x_adv - X).max() <= 0.4 + 1e-6 and (x_adv > 1).any()
        if bounds is not None:
            assert (x_adv >= np.float32(bounds[0])).all() and (x_adv <= np.float32(bounds[1])).all()


@pytest.mark.slow
@pytest.mark.parametrize("norm, epsilon", [("linf", 0.15), ("l1", 1.0)])
def test_compiled_loops_and_python_loops_agree(norm, epsilon, monkeypatch):
    model = network()
    X, y = data(model)
    attacks = everything(norm, epsilon)
    del attacks["autoattack"]
    compiled = {name: examples(attack, model, X, y) for name, attack in attacks.items()}
    monkeypatch.setattr("ntkrobust_sk.execution.loops.prefers_compiled_loop", lambda *_: False)
    for name, attack in attacks.items():
        np.testing.assert_allclose(examples(attack, model, X, y), compiled[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("norm, epsilon", [("linf", 0.15), ("l2", 0.5), ("l1", 1.0)])
def test_images_and_the_same_as_rows_have_the_same_examples(norm, epsilon):
    shape = SHAPES["images"]
    model = network(shape)
    X, y = data(model, shape)
    rows = jax.tree_util.Partial(lambda model, x: model(x.reshape(-1, *shape)), model)
    attacks = everything(norm, epsilon) | {"pgd": PGD(epsilon, 4, norm=norm), "fmn": FMN(epsilon, norm=norm)}
    # whose squares are another thing in rows; losses of scores are one for all norms
    del attacks["autoattack"], attacks["square"]
    if norm != "linf":
        del attacks["dlr"], attacks["targeted-dlr"]
    for name, attack in attacks.items():
        found = examples(attack, model, X, y)
        assert found.shape == X.shape
        of_rows = examples(attack, rows, X.reshape(N, -1), y)
        np.testing.assert_allclose(of_rows, found.reshape(N, -1), atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_autoattack_wants_inputs():
    with pytest.raises(ValueError, match=r"no inputs to attack: its shape is \(0, 12\)"):
        AutoAttack(0.1).run(network(), np.zeros((0, 12), np.float32), np.zeros(0, int), key=KEY)


# APGD


def plain_apgd(gradient, value, fools, x, start, epsilon, n_steps, norm):
    """Algorithm 1 of Croce & Hein 2020 for one example, with the step size's schedule written out."""

    def inside(z):
        delta = z - x
        if norm == "linf":
            delta = np.clip(delta, -epsilon, epsilon)
        else:
            delta = delta * min(1, epsilon / max(np.linalg.norm(delta), 1e-300))
        return np.clip(x + delta, 0, 1)

    def steepest(g):
        return np.sign(g) if norm == "linf" else g / np.linalg.norm(g)

    checkpoints = [0]
    window, least, decrement = int(0.22 * n_steps), max(int(0.06 * n_steps), 1), max(int(0.03 * n_steps), 1)
    while checkpoints[-1] + window <= n_steps:
        checkpoints.append(checkpoints[-1] + window)
        window = max(window - decrement, least)
    step, before, now, best = 2 * epsilon, start, start, start
    fooling = [start] if fools(start) else []
    values, at_last_checkpoint, halved = [0.0], value(start), True
    for k in range(1, n_steps + 1):
        z = inside(now + step * steepest(gradient(now)))
        share = 1.0 if k == 1 else 0.75
        ahead = inside(now + share * (z - now) + (1 - share) * (now - before))
        before, now = now, ahead
        values.append(value(now))
        fooling += [now] if fools(now) else []
        best = now if value(now) > value(best) else best
        if k in checkpoints:
            last = checkpoints[checkpoints.index(k) - 1]
            rises = sum(values[i] > values[i - 1] for i in range(last + 1, k + 1))
            seldom = rises <= 0.75 * (k - last)
            stuck = not halved and at_last_checkpoint >= value(best)
            halved, at_last_checkpoint = seldom or stuck, value(best)
            if halved:
                step, now = step / 2, best
    return fooling[0] if fooling else best


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_iterates_are_those_of_the_published_algorithm(norm):
    with enable_x64(True):
        rng = np.random.default_rng(3)
        weights, bend = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
        model = jax.tree_util.Partial(lambda x: jnp.sin(3 * x) @ weights + jnp.cos(2 * x) @ bend)
        X, epsilon, n_steps = rng.uniform(size=(9, 6)), 0.12, 30
        y = np.asarray(model(X).argmax(1), np.int32)
        found = np.asarray(APGD(epsilon, n_steps, norm=norm)(model, X, y, key=KEY))
        # where each starts, by an attack that makes no step worth the name
        keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(9))
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
        noise = np.stack([NORMS[norm].sample(k, (6,), np.float64, 1.0) for k in keys])
        length = np.abs(noise).max(1) if norm == "linf" else np.linalg.norm(noise, axis=1)
        starts = np.clip(X + epsilon * noise / length[:, None], 0, 1)
        value_of = jax.jit(lambda z, label: example_losses(model(z[None]), label[None])[0])
        gradient_of, n_fooled = jax.jit(jax.grad(value_of)), 0
        answer_of = jax.jit(lambda z: model(z[None]).argmax(1)[0])
        for x, label, start, x_adv in zip(X, y, starts, found, strict=True):
            expected = plain_apgd(
                lambda z, label=label: np.asarray(gradient_of(z, label)),
                lambda z, label=label: float(value_of(z, label)),
                lambda z, label=label: int(answer_of(z)) != label,
                x,
                start,
                epsilon,
                n_steps,
                norm,
            )
            np.testing.assert_allclose(x_adv, expected, atol=1e-9)
            n_fooled += int(answer_of(x_adv)) != label
        assert 0 < n_fooled < 9


def test_the_step_size_is_looked_at_as_published():
    looks, windows = _looks(100, "linf")
    # 22, then 3 fewer each time, never less than 6
    assert (np.flatnonzero(looks) + 1).tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert windows[looks].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]
    looks, _ = _looks(100, "l1")
    assert (np.flatnonzero(looks) + 1).tolist() == list(range(4, 101, 4))


def plain_sparse_apgd(gradient, value, project, x, start, epsilon, n_steps):
    """l1-APGD of Croce & Hein 2021 for one example: sparsity and step size after those of the best point."""

    def inside(z):
        room = np.where(z > x, 1 - x, x)
        return x + np.asarray(project(jnp.asarray((z - x)[None]), epsilon, jnp.asarray(room[None]))[0])

    now = best = inside(start)
    step, changed = epsilon, np.sum(now != x)
    count = changed / 1.5
    for k in range(1, n_steps + 1):
        g = gradient(now)
        movable = np.where((np.where(g > 0, 1 - now, now) > 1e-14) | (now != x), np.abs(g), 0)
        largest = np.sort(movable)[-max(round(count), 1) :]
        largest = largest[largest > 0]
        now = inside(now + step * np.sign(g) * (np.abs(g) >= largest.min()) / len(largest))
        best = now if value(now) > value(best) else best
        if k % max(int(0.04 * n_steps), 1) == 0:
            fewer = np.sum(best != x) < 0.95 * changed
            changed = np.sum(best != x)
            count = changed / 1.5
            step, now = (epsilon, best) if fewer else (max(step / 1.5, epsilon / 10), now)
    return best


@pytest.mark.slow
def test_in_the_l1_norm_the_iterates_are_those_of_the_published_algorithm():
    with enable_x64(True):
        rng = np.random.default_rng(3)
        weights, targets = rng.normal(size=(20, 4)), np.zeros((5, 4))
        # real targets, of which there is no wrong answer
        model = jax.tree_util.Partial(lambda x: jnp.sin(3 * x) @ weights)
        X, epsilon, n_steps = rng.uniform(size=(5, 20)), 1.5, 50
        found = np.asarray(APGD(epsilon, n_steps, norm="l1")(model, X, targets, key=KEY))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(5))
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
        noise = np.stack([NORMS["l1"].sample(k, (20,), np.float64, 1.0) for k in keys])
        starts = X + 3 * epsilon * noise / np.abs(noise).sum(1, keepdims=True)
        value_of = jax.jit(lambda z: jnp.sum(model(z[None]) ** 2))
        gradient_of = jax.jit(jax.grad(value_of))
        project = jax.jit(NORMS["l1"].project)
        for x, expected, x_adv in zip(X, starts, found, strict=True):
            for radius, count in ((3, 15), (2, 15), (1, 20)):
                expected = plain_sparse_apgd(
                    lambda z: np.asarray(gradient_of(z)),
                    lambda z: float(value_of(z)),
                    project,
                    x,
                    expected,
                    radius * epsilon,
                    count,
                )
            np.testing.assert_allclose(x_adv, expected, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("n_features, epsilon, least, mean", [(12, 2.0, 0.92, 0.99), (200, 4.0, 0.97, 0.99)])
def test_in_the_l1_norm_it_comes_near_to_the_best_corner_of_ball_and_bounds(n_features, epsilon, least, mean):
    rng = np.random.default_rng(0)
    X = rng.uniform(size=(N, n_features)).astype(np.float32)
    slope = rng.normal(size=n_features).astype(np.float32)
    # the answer is sure, but not so sure that its loss has no gradient
    model = linear(np.stack([0 * slope, slope], 1), jnp.array([40.0, 0.0], jnp.float32))
    order = np.argsort(-np.abs(slope))
    room = np.where(slope > 0, 1 - X, X)[:, order]
    used = np.diff(np.minimum(np.cumsum(room, 1), epsilon), axis=1, prepend=0)
    most = used @ np.abs(slope[order])
    x_adv = np.asarray(APGD(epsilon, norm="l1")(model, X, np.zeros(N, np.int32), key=KEY))
    gained = (x_adv - X) @ slope
    assert (gained > least * most).all()
    assert gained.mean() > mean * most.mean()


@pytest.mark.slow
@pytest.mark.parametrize("n_steps", [1, 2, 3, 4, 7])
def test_few_steps_in_the_l1_norm_stay_in_ball_and_bounds(n_steps):
    model = network()
    X, y = data(model, n=20)
    x_adv = np.asarray(APGD(1.0, n_steps, norm="l1")(model, X, y, key=KEY))
    assert sum(count for _, count in _radii(n_steps, "l1")) == n_steps
    assert np.abs(x_adv - X).sum(1).max() <= 1 + 1e-5
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (x_adv != X).any(1).all()


@pytest.mark.slow
def test_ratios_of_logits_do_not_change_with_shift_and_scale():
    rng = np.random.default_rng(0)
    scores, y, t = rng.normal(size=(20, C)), rng.integers(C, size=20), rng.integers(C, size=20)
    for loss in (dlr, targeted_dlr):
        value = np.asarray(loss(jnp.asarray(scores), jnp.asarray(y), jnp.asarray(t)))
        moved = np.asarray(loss(jnp.asarray(100 * scores + 7), jnp.asarray(y), jnp.asarray(t)))
        np.testing.assert_allclose(value, moved, rtol=1e-3, atol=1e-4)
    ordered = np.sort(scores, 1)
    fooled = scores.argmax(1) != y
    assert ((np.asarray(dlr(jnp.asarray(scores), jnp.asarray(y), None)) > 0) == fooled).all()
    expected = (scores[0, t[0]] - scores[0, y[0]]) / (ordered[0, -1] - (ordered[0, -3] + ordered[0, -4]) / 2)
    assert value[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_it_finds_what_plain_gradient_ascent_does_not_where_logits_are_large():
    model = network()
    X, y = data(model, n=100)
    # in single precision the cross-entropy of sure answers has no gradient left
    sure = jax.tree_util.Partial(lambda model, x: 1e4 * model(x), model)
    accuracies = [accuracy(sure, APGD(0.06, 30, loss=loss)(sure, X, y, key=KEY), y) for loss in ("ce", "dlr")]
    assert accuracies[1] <= accuracies[0] < 1


@pytest.mark.parametrize("loss, classes", [("dlr", 2), ("targeted-dlr", 3)])
def test_losses_that_need_more_classes_say_so(loss, classes):
    model = linear(np.ones((12, classes), np.float32))
    with pytest.raises(ValueError, match="classes or more, but the model gives"):
        APGD(0.1, loss=loss)(model, np.full((2, 12), 0.5, np.float32), np.zeros(2, np.int32), key=KEY)


# FAB


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@each_norm
def test_the_nearest_point_of_a_plane_is_that_of_a_general_solver(norm, seed):
    rng = np.random.default_rng(seed)
    x, w = rng.uniform(size=7), rng.normal(size=7)
    w[0] = 0
    lower, upper = -x, 1 - x
    most = np.where(w > 0, w * upper, w * lower).sum()
    r = (0.2 + 0.7 * rng.uniform()) * most * (-1 if seed % 2 else 1)
    if seed % 2:
        r = (0.2 + 0.7 * rng.uniform()) * np.where(w > 0, w * lower, w * upper).sum()
    with enable_x64(True):
        ball = Ball(*(jnp.asarray(v) for v in (0.1, 0.0, 1.0)))
        (d,) = np.asarray(to_plane(NORMS[norm], *(jnp.asarray([v]) for v in (w, r, x)), ball))
    assert w @ d == pytest.approx(r, abs=1e-9) and (d >= lower - 1e-12).all() and (d <= upper + 1e-12).all()
    if norm == "linf":
        # the last variable bounds the size of all others
        sides = np.block([[np.eye(7), -np.ones((7, 1))], [-np.eye(7), -np.ones((7, 1))]])
        box = [*zip(lower, upper, strict=True), (0, None)]
        best = linprog([0] * 7 + [1], A_ub=sides, b_ub=np.zeros(14), A_eq=[[*w, 0]], b_eq=[r], bounds=box).fun
        assert np.abs(d).max() == pytest.approx(best, abs=1e-9)
    elif norm == "l1":
        # both ways of each feature are variables
        box = [*((0, u) for u in upper), *((0, -low) for low in lower)]
        best = linprog([1] * 14, A_eq=[[*w, *-w]], b_eq=[r], bounds=box).fun
        assert np.abs(d).sum() == pytest.approx(best, abs=1e-9)
    else:
        plane = {"type": "eq", "fun": lambda d: w @ d - r}
        box = list(zip(lower, upper, strict=True))
        best = minimize(lambda d: d @ d, np.zeros(7), bounds=box, constraints=plane, tol=1e-14, method="SLSQP")
        assert d @ d == pytest.approx(best.fun, rel=1e-5)


@pytest.mark.slow
def test_a_plane_out_of_reach_is_approached_as_far_as_the_bounds_allow():
    ball = Ball(*(jnp.asarray(v, jnp.float32) for v in (0.1, 0.0, 1.0)))
    d = to_plane(NORMS["linf"], jnp.array([[1.0, -2.0]]), jnp.array([100.0]), jnp.array([[0.25, 0.5]]), ball)
    np.testing.assert_allclose(d, [[0.75, -0.5]])


@pytest.mark.slow
@each_norm
def test_between_linear_scores_it_finds_the_exact_distance(norm):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(12, C)).astype(np.float32)
    model = linear(weights)
    X, y = data(model)
    nearest, distance = FAB(10.0, 30, norm=norm, bounds=None).nearest(model, X, y, key=KEY)
    scores = X @ weights
    gaps = scores[np.arange(N), y][:, None] - scores
    across = weights[:, y].T[:, None, :] - weights.T
    dual = np.linalg.norm(across, axis=2, ord=DUALS[norm])
    exact = np.where(np.arange(C) == y[:, None], np.inf, gaps / np.maximum(dual, 1e-9)).min(1)
    assert accuracy(model, nearest, y) == 0
    assert (distance >= exact * (1 - 1e-4)).all()
    np.testing.assert_allclose(distance, exact, rtol=0.01)


@pytest.mark.slow
def test_points_beyond_epsilon_do_not_count_and_wrong_answers_stay_as_they_are():
    model = network()
    X, y = data(model)
    y[:5] = (y[:5] + 1) % C
    attack = FAB(0.05, 20)
    nearest, distance = attack.nearest(model, X, y, key=KEY)
    x_adv = np.asarray(attack(model, X, y, key=KEY))
    assert (np.asarray(distance[:5]) == 0).all() and (x_adv[:5] == X[:5]).all()
    far = np.asarray(distance) > 0.05
    assert 0 < far.sum() < N
    np.testing.assert_array_equal(x_adv[far], X[far])
    np.testing.assert_array_equal(x_adv[~far], np.asarray(nearest)[~far])
    assert accuracy(model, x_adv, y) == far.mean()


# Square


def test_proposals_shrink_as_published():
    sizes = _sizes(10_000, 0.8, (32, 32, 3))
    # the side of a square with 0.8 / 2^k of the pixels
    for query, halvings in ((1, 0), (10, 0), (11, 1), (50, 1), (51, 2), (501, 4), (8001, 9)):
        assert sizes[query - 1] == max(round((0.8 / 2**halvings * 1024) ** 0.5), 1)
    # of rows so many features, and never none
    assert _sizes(100, 0.5, (12,))[0] == 6 and _sizes(100, 0.1, (4,)).min() == 1


@pytest.mark.slow
@each_shape
def test_with_enough_queries_a_linear_model_is_brought_to_the_worst_corner(shape):
    size = int(np.prod(shape))
    weights = np.random.default_rng(0).normal(size=(size, 2)).astype(np.float32)
    X = np.full((6, *shape), 0.5, np.float32)
    # an answer that no corner of the ball can change
    model = linear(weights, jnp.array([1e3, 0.0], jnp.float32))
    x_adv = Square(0.1, 3000)(model, X, np.zeros(6, np.int32), key=KEY)
    lost = 1e3 + X.reshape(6, -1) @ (weights[:, 0] - weights[:, 1]) - margin(model(x_adv), jnp.zeros(6, jnp.int32))
    most = 0.1 * np.abs(weights[:, 0] - weights[:, 1]).sum()
    assert (np.asarray(lost) > 0.9 * most).all()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "l1"])
@each_shape
def test_in_other_norms_too_random_search_comes_near_to_the_worst_point_of_a_linear_model(shape, norm):
    size = int(np.prod(shape))
    slope = np.random.default_rng(0).normal(size=size).astype(np.float32)
    X = np.full((6, *shape), 0.5, np.float32)
    model = linear(np.stack([slope, 0 * slope], 1), jnp.array([10.0, 0.0], jnp.float32))
    x_adv = Square(0.2, 2000, norm)(model, X, np.zeros(6, np.int32), key=KEY)
    assert lengths(x_adv - X, norm).max() < 0.2 + 1e-6
    most = 0.2 * (np.linalg.norm(slope) if norm == "l2" else np.abs(slope).max())
    # squares of several pixels of one sign are not what a slope without any structure asks for
    share = 0.9 if len(shape) == 1 else 0.5
    assert ((X - np.asarray(x_adv)).reshape(6, -1) @ slope > share * most).all()


@pytest.mark.slow
def test_bumps_are_two_pyramids_of_opposite_sign():
    rows, columns = np.arange(7)[:, None] - 1, np.arange(7) - 1
    bump = np.asarray(_bump(rows, columns, 5, (7, 7, 1)))
    assert (bump[0] == 0).all() and (bump[6] == 0).all() and (bump[:, 0] == 0).all()
    assert (bump[1:3, 1:6] > 0).all() and (bump[3:6, 1:6] < 0).all()
    # n = 2: the height grows by 1/9, 1/4 and 1 towards the middle
    np.testing.assert_allclose(bump[2, 1:6], np.cumsum([1 / 9, 1 / 4, 1])[[0, 1, 2, 1, 0]], rtol=1e-6)


@pytest.mark.slow
def test_it_needs_no_gradient():
    model = network()
    X, y = data(model)
    steps = jax.tree_util.Partial(lambda model, x: model(jnp.round(x * 8) / 8), model)
    y = np.asarray(steps(X).argmax(1), np.int32)
    assert accuracy(steps, PGD(0.2, 20, random_start=False)(steps, X, y, key=KEY), y) == 1
    assert accuracy(steps, Square(0.2, 300)(steps, X, y, key=KEY), y) < 0.8


@pytest.mark.slow
def test_one_query_is_the_start_alone():
    model = network()
    X, y = data(model)
    for norm in NORMS:
        found = examples(Square(0.3, 1, norm=norm), model, X, y)
        assert np.isfinite(found).all() and (found != X).any()


# AutoAttack


class Counting:
    """An attack that counts its calls' rows."""

    def __init__(self, attack, seen):
        self.attack, self.seen = attack, seen
        self.epsilon, self.norm, self.bounds = attack.epsilon, attack.norm, attack.bounds

    def __call__(self, model, x, y, *, key):
        self.seen.append(len(x))
        return self.attack(model, x, y, key=key)


@pytest.mark.slow
def test_what_one_member_broke_is_not_attacked_again_and_every_fall_is_real(monkeypatch):
    model = network()
    X, y = data(model, n=80)
    y[:4] = (y[:4] + 1) % C
    attack, seen = everything("linf", 0.08)["autoattack"], {}
    plain = attack.members(C)
    counted = {name: Counting(member, seen.setdefault(name, [])) for name, member in plain.items()}
    monkeypatch.setattr(AutoAttack, "members", lambda *_: counted)
    report = attack.run(model, X, y, key=KEY, rows=N)
    assert report.names == ("clean", "apgd-ce", "apgd-t", "fab-t", "square")
    assert report.accuracies[0] == 76 / 80
    for i, name in enumerate(plain, 1):
        standing = round(report.accuracies[i - 1] * 80)
        assert sum(seen[name]) == -(-standing // N) * N, name
    # at least one member had fewer tiles than there were at first
    assert sum(seen["square"]) == N
    assert 0 < report.robust_accuracy < report.accuracies[0]
    assert report.robust_accuracy == accuracy(model, report.x_adv, y) == (report.fallen_to == -1).mean()
    np.testing.assert_array_equal(report.x_adv[report.fallen_to <= 0], X[report.fallen_to <= 0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "classes, names", [(2, ["apgd-ce", "fab-t", "square"]), (3, ["apgd-ce", "apgd-dlr", "fab-t", "square"])]
)
def test_with_few_classes_it_makes_do(classes, names):
    weights = np.random.default_rng(0).normal(size=(12, classes)).astype(np.float32)
    model = linear(weights, -0.5 * weights.sum(0))
    X, y = data(model)
    attack = AutoAttack(0.3, norm="l2", n_steps=5, n_queries=50)
    assert list(attack.members(classes)) == names
    assert attack.run(model, X, y, key=KEY).robust_accuracy < 1


@pytest.mark.slow
def test_it_is_no_weaker_than_plain_gradient_ascent():
    model = network()
    X, y = data(model)
    strong = accuracy(model, examples(everything("linf", 0.08)["autoattack"], model, X, y), y)
    assert strong <= accuracy(model, examples(PGD(0.08, 40), model, X, y), y) < 1


def names_of(found):
    return sorted(flag.split(":")[0] for flag in found)


def flags_of(model, X, y):
    return names_of(flags(model, X, y, N, ("clean", "square"), np.zeros(N, int)))


@pytest.mark.slow
def test_an_honest_network_raises_no_flag():
    model = network()
    assert flags_of(model, *data(model)) == []
    model = network(SHAPES["images"], network=CNN(C, (4,), (2,)))
    assert flags_of(model, *data(model, SHAPES["images"])) == []


@pytest.mark.slow
def test_models_that_hide_their_gradients_are_flagged():
    model = network()
    X, y = data(model)
    softmax = jax.tree_util.Partial(lambda model, x: jax.nn.softmax(model(x)), model)
    assert "probabilities" in flags_of(softmax, X, y)
    rng = np.random.default_rng(0)

    def drawing(x):
        drawn = jax.ShapeDtypeStruct((12,), jnp.float32)
        noise = jax.pure_callback(lambda: rng.normal(size=12).astype(np.float32), drawn)
        return model(x + 0.3 * jax.lax.stop_gradient(noise))

    assert {"randomness", "flat operations"} <= set(flags_of(drawing, X, y))


def test_what_a_bare_function_draws_when_it_is_called_is_randomness():
    model, rng = network(), np.random.default_rng(0)
    X, y = data(model)
    assert "randomness" in flags_of(lambda x: model(x) + rng.normal(), X, y)
    assert "randomness" in flags_of(lambda x: model(x + jnp.asarray(rng.normal(size=x.shape), x.dtype)), X, y)


@pytest.mark.slow
def test_looking_for_flags_compiles_no_single_operations(caplog):
    model = network(network=MLP(C, (7, 6, 5)))
    X, y = data(model)
    with jax.log_compiles():
        flags_of(model, X, y)
    compiled = [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]
    assert compiled and not any(name in text for text in compiled for name in ("jit(dot", "jit(tanh", "jit(add"))
    assert len(compiled) <= 8


def test_all_ranks_of_targets_share_a_program():
    model = network()
    X, _ = data(model)
    before = _target._cache_size()
    order = np.argsort(np.asarray(model(X)), axis=1)
    for rank in range(1, C + 1):
        np.testing.assert_array_equal(_target(model, X, rank), order[:, -rank])
    assert _target._cache_size() <= before + 1


@pytest.mark.slow
def test_a_defence_that_gradients_do_not_see_through_is_broken_by_square_and_flagged():
    model = network()
    steps = jax.tree_util.Partial(lambda model, x: model(jnp.round(x * 6) / 6), model)
    X, _ = data(model)
    y = np.array(steps(X).argmax(1), np.int32)
    report = AutoAttack(0.1, n_steps=20, n_queries=200, n_targets=2).run(steps, X, y, key=KEY, rows=N)
    assert names_of(report.flags) == ["flat operations", "square", "zero gradients"]
    assert report.robust_accuracy < report.accuracies[3] - 0.05


def test_members_meet_the_examples_that_are_left_with_little_padding_and_find_the_same():
    for most in (50, 128, 512):
        sizes = row_sizes(most)
        for n in range(32, 700):
            rows = tile_rows(n, sizes)
            assert rows <= most and n <= -(-n // rows) * rows <= 1.26 * n
    model = network()
    X, y = data(model)
    attack = AutoAttack(0.1, n_steps=10, n_queries=100, n_targets=2)
    found = [attack.run(model, X, y, key=KEY, rows=rows) for rows in (3, N, 512)]
    for other in found[1:]:
        assert (other.fallen_to == found[0].fallen_to).mean() >= 1 - 1 / N


# Bad input


@pytest.mark.parametrize(
    "made, message",
    [
        (lambda: APGD(-1), "epsilon must be"),
        (lambda: APGD(0.1, loss="hinge"), "unknown loss"),
        (lambda: APGD(0.1, norm="l0"), "unknown norm"),
        (lambda: APGD(0.1, n_targets=0), "n_targets must be"),
        (lambda: FAB(0.1, n_steps=0), "n_steps must be"),
        (lambda: FAB(0.1, n_targets=1.5), "n_targets must be"),
        (lambda: Square(0.1, n_queries=0), "n_queries must be"),
        (lambda: Square(0.1, share=0), "share must be"),
        (lambda: AutoAttack(0.1, norm="l7"), "unknown norm"),
        (lambda: AutoAttack("8/255"), "epsilon must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()


@pytest.mark.parametrize("attack", everything("linf").values(), ids=everything("linf"))
def test_data_that_make_no_sense_are_refused(attack):
    model = network()
    X, y = data(model)
    with pytest.raises(ValueError, match="bounds are"):
        attack(model, X + 1, y, key=KEY)
    with pytest.raises(TypeError, match="must be floating"):
        attack(model, np.ones((3, 12), int), np.zeros(3, np.int32), key=KEY)
    with pytest.raises(TypeError, match="must be a JAX PRNG key"):
        attack(model, X, y, key=3)


def test_autoattack_inside_of_jit_says_that_it_cannot():
    model = network()
    X, y = data(model)
    with pytest.raises(TypeError, match="call it outside"):
        jax.jit(lambda x: AutoAttack(0.1)(model, x, y, key=KEY))(X)


@pytest.mark.slow
def test_one_model_is_attacked_in_single_and_in_double_precision():
    X, y = load_iris(return_X_y=True)
    X, y = X[::5] / 8, y[::5]
    model = as_model(LogisticRegression().fit(X, y))
    attack = AutoAttack(0.3, n_steps=3, n_queries=5)
    for x64 in (False, True):
        with enable_x64(x64):
            report = attack.run(model, X.astype(float if x64 else np.float32), y, key=jax.random.key(0))
            assert report.x_adv.dtype == (np.float64 if x64 else np.float32)
