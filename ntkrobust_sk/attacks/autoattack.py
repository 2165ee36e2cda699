"""AutoAttack: four attacks that need no tuning, one after the other (Croce & Hein 2020, arXiv:2003.01690)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _html
from .._drawing import COLORS, Axes, axes_of, finish, styled
from .._validation import integer
from ..execution.devices import on_host
from ..execution.tiles import NO_ANSWER, ROWS_ACCELERATOR, answers, as_pytree, evaluate, pad_rows, tile_rows
from .apgd import APGD
from .boxes import Box
from .each import NOTHING, Each
from .entry import checked_model, fitting_model
from .fab import FAB
from .losses import example_losses
from .skeleton import AttackSettings
from .square import Square
from .tiled import Work, all_tiles, checked_data, finite_or_inputs

# Rows that may be attacked at once on a CPU, where rows of padding cost as much as others: members meet fewer and
# fewer examples, and each number of rows is compiled for.
ROWS = (8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 112, 128)
# Of a report's table.
HEAD = ["", "fallen", "accuracy left"]
L1_RESTARTS, L1_MAX_TARGETS = 5, 5
ZERO_GRADIENT_PRIMITIVES = ("argmax", "argmin", "ceil", "floor", "round", "sign", "stop_gradient")


@dataclass(frozen=True)
class AutoAttack(AttackSettings):
    """The standard ensemble: APGD on cross-entropy, APGD and FAB towards targets, and Square.

    Examples that one member has broken are not attacked again, so the robust accuracy is that of the worst case
    over all of them. With fewer than four classes there is no targeted ratio of logits: for three APGD takes the
    untargeted one, for two the cross-entropy is all there is. In the L1 norm APGD runs five times on the
    cross-entropy, and towards five targets at most, as in the reference implementation.

    Parameters
    ----------
    epsilon : float
        Radius of the ball, in units of the data.
    norm : {"linf", "l2", "l1"}, default="linf"
    n_steps : int, default=100
        Of APGD and FAB.
    n_queries : int, default=5000
        Of Square.
    n_targets : int, default=9
    bounds : (low, high), Box or None, default=(0.0, 1.0)
        As for :class:`~ntkrobust_sk.PGD`.

    Raises
    ------
    ValueError, TypeError
        As for :class:`~ntkrobust_sk.PGD`. TypeError inside of ``jit``: which member is called for which example
        depends on what was found.

    Examples
    --------
    >>> import jax
    >>> from ntkrobust_sk import AutoAttack, MLP, Model
    >>> network = MLP(n_outputs=4)
    >>> model = Model(network, network.init(jax.random.key(0), (6,)))
    >>> X = np.random.default_rng(0).uniform(size=(20, 6)).astype(np.float32)
    >>> y = np.asarray(model(X).argmax(1))
    >>> report = AutoAttack(epsilon=0.1, n_steps=10, n_queries=50).run(model, X, y, key=jax.random.key(1))
    >>> report.names
    ('clean', 'apgd-ce', 'apgd-t', 'fab-t', 'square')
    >>> report.accuracies[0], bool((np.diff(report.accuracies) <= 0).all()), report.flags
    (1.0, True, ())
    """

    epsilon: float
    norm: str = "linf"
    n_steps: int = 100
    n_queries: int = 5000
    n_targets: int = 9
    bounds: tuple | Box | None = (0.0, 1.0)
    needs_labels = True

    def members(self, n_classes: int) -> dict[str, Callable]:
        """Return the attacks on a model with so many scores, by name, in their order."""
        n_classes = integer("n_classes", n_classes)
        common = {"norm": self.norm, "bounds": self.bounds}
        is_l1 = self.norm == "l1"
        restarts = L1_RESTARTS if is_l1 else 1
        found: dict[str, Callable] = {"apgd-ce": APGD(self.epsilon, self.n_steps, n_restarts=restarts, **common)}
        if n_classes == 3:
            found["apgd-dlr"] = APGD(self.epsilon, self.n_steps, loss="dlr", **common)
        if n_classes > 3:
            n_targets = min(self.n_targets, L1_MAX_TARGETS) if is_l1 else self.n_targets
            found["apgd-t"] = APGD(self.epsilon, self.n_steps, loss="targeted-dlr", n_targets=n_targets, **common)
        found["fab-t"] = FAB(self.epsilon, self.n_steps, n_targets=self.n_targets, **common)
        found["square"] = Square(self.epsilon, self.n_queries, **common)
        return found

    def __call__(self, model: Callable, x: Any, y: Any, *, key: Any) -> np.ndarray:
        """Return examples (n, ...) of inputs (n, ...) and labels (n,); ``key`` is one, or one for each."""
        return self.run(model, x, y, key=key).x_adv

    def in_tiles(
        self,
        model: Callable,
        X: np.ndarray,
        y: np.ndarray,
        *,
        key: Any,
        rows: int,
        each: Each | None = None,
        n_jobs: int | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Return adversarial examples of X (n, ...), attacked so many at a time."""
        return self.run(model, X, y, key=key, rows=rows, each=each, n_jobs=n_jobs, progress=progress).x_adv

    def run(
        self,
        model: Callable,
        X: Any,
        y: Any,
        *,
        key: Any,
        rows: int | None = None,
        each: Each | None = None,
        n_jobs: int | None = None,
        progress: bool = False,
    ) -> AutoAttackReport:
        """Attack, and tell what each member has added.

        Parameters
        ----------
        model : callable
            ``x -> scores`` (n, C).
        X : array (n, ...)
        y : array (n,) of int labels
        key : JAX PRNG key, or one for each example (n,)
        rows : int, default=None
            Of a tile, the most of them; None is 128 on a CPU and 512 on an accelerator. On a CPU a member takes
            fewer where that spares padding, and never more than 128.
        each : Each, default=None
            Radii and aims of the examples. With aims an example falls where it is answered by its aim, and the
            members are those for two classes: the aim and the others.
        n_jobs, progress
            As for :func:`~ntkrobust_sk.attacks.attack_in_tiles`.

        Returns
        -------
        AutoAttackReport
        """
        if isinstance(X, Tracer) or isinstance(y, Tracer):
            raise TypeError("AutoAttack decides by what it finds, which jit does not know: call it outside")
        model = checked_model(model)
        X, y, keys = checked_data(self, X, y, key)
        if not len(X):
            raise ValueError(f"X holds no inputs to attack: its shape is {X.shape}")
        sizes = row_sizes(ROWS_ACCELERATOR if rows is None else integer("rows", rows))
        rows = sizes[-1]
        model, n_classes = fitting_model(self, model, jnp.asarray(pad_rows(X[:rows], rows)), y, len(X))
        x_adv, fallen_to, each = X.copy(), np.full(len(X), -1), each or NOTHING
        fallen_to[each.fallen(answers(model, X, rows), y)] = 0
        members = self.members(max(n_classes, 2) if each.aims is None else 2)
        for number, attack in enumerate(members.values(), 1):
            at = np.flatnonzero(fallen_to == -1)
            if not len(at):
                break
            work = Work(each.at(at), n_jobs, progress)
            given = model, X[at], y[at], keys[at]
            found, _ = all_tiles(attack, *given, tile_rows(len(at), sizes), n_classes, work)
            found = finite_or_inputs(attack, found, X[at])
            answered = answers(model, found, rows)
            fell = each.at(at).fallen(answered, y[at]) & (answered != NO_ANSWER)
            x_adv[at[fell]], fallen_to[at[fell]] = found[fell], number
        names = ("clean", *members)
        return AutoAttackReport(x_adv, fallen_to, names, tuple(flags(model, X, y, rows, names, fallen_to)))


def row_sizes(most: int) -> tuple[int, ...]:
    """Return how many rows may be attacked at once, in rising order, if no more than ``most`` are."""
    if not on_host():
        return (most,)
    return (*(rows for rows in ROWS if rows < most), min(most, ROWS[-1]))


@dataclass(frozen=True, eq=False, repr=False)
class AutoAttackReport:
    """The examples that AutoAttack has found, and what each member has added; printed, they are a table.

    Attributes
    ----------
    x_adv : array (n, ...)
        A point of each example that is answered wrongly, or the example itself if none was found.
    fallen_to : int array (n,)
        Position in ``names`` of what broke the example; 0 where it was answered wrongly as it is, −1 where it
        still stands.
    names : tuple of str
        "clean", and the members in their order.
    flags : tuple of str
        Reasons not to trust the robust accuracy.
    """

    x_adv: np.ndarray
    fallen_to: np.ndarray
    names: tuple[str, ...]
    flags: tuple[str, ...]

    @property
    def accuracies(self) -> list[float]:
        """Return the accuracy on clean examples, and after each member."""
        fallen = [np.mean((self.fallen_to >= 0) & (self.fallen_to <= i)) for i in range(len(self.names))]
        return [float(1 - share) for share in fallen]

    @property
    def robust_accuracy(self) -> float:
        """Return the share of examples that still stand."""
        return self.accuracies[-1]

    def plot(self, ax: Axes | None = None, *, bar_kw: dict | None = None) -> Axes:
        """Draw the accuracy that each member has left, as bars; the title says if there are flags.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.
        bar_kw : dict, default=None
            Keywords for ``ax.bar``.

        Returns
        -------
        matplotlib Axes
        """
        bar_kw = styled("bar_kw", bar_kw, color=COLORS["robust"])
        ax = axes_of(ax)
        bars = ax.bar(self._steps(), self.accuracies, **bar_kw)
        ax.bar_label(bars, [f"{accuracy:.3f}" for accuracy in self.accuracies], padding=2)
        title = f"not to be trusted: {len(self.flags)} flags" if self.flags else ""
        finish(ax, ylabel="accuracy", ylim=(0, 1.08), title=title)
        return ax

    def __str__(self):
        lines = [f"{name:<16}{count:>8}   {accuracy}" for name, count, accuracy in [HEAD, *self._rows()]]
        return "\n".join([self._caption(), "", *lines, *self._flags()])

    def __repr__(self):
        flags = f", {len(self.flags)} flags" if self.flags else ""
        return f"<AutoAttackReport: {self._caption()}{flags}>"

    def _repr_html_(self):
        return _html.table(self._caption(), HEAD, self._rows(), self._flags())

    def _caption(self) -> str:
        return f"AutoAttack on {len(self.fallen_to):,} examples: robust accuracy {self.robust_accuracy:.3f}"

    def _rows(self) -> list[list[str]]:
        broken = np.bincount(self.fallen_to[self.fallen_to >= 0], minlength=len(self.names))
        found = zip(self._steps(), broken, self.accuracies, strict=True)
        return [[name, f"{count:,}", f"{accuracy:.3f}"] for name, count, accuracy in found]

    def _flags(self) -> list[str]:
        return [f"flag: {flag}" for flag in self.flags]

    def _steps(self) -> list[str]:
        first, *members = self.names
        return [first, *(f"after {name}" for name in members)]


def flags(
    model: Callable, X: np.ndarray, y: np.ndarray, rows: int, names: tuple[str, ...], fallen_to: np.ndarray
) -> list[str]:
    """Return signs that gradients are hidden or that the model draws lots, as the reference code does."""
    found = []
    x, labels = (jnp.asarray(pad_rows(values[:rows], rows)) for values in (X, y))
    scores, again = (evaluate(model, np.asarray(x), rows) for _ in range(2))
    traces = [jax.make_jaxpr(lambda f, x: f(x))(as_pytree(model), x) for _ in range(2)]
    # what a bare function draws outside of JAX it draws once for each compilation
    if not _same(*traces):
        again = np.asarray(jax.jit(lambda z: model(z))(x))
    if _differ(scores, again):
        found.append("randomness: two evaluations of the same inputs differ; average over its draws in the attack")
    if scores.min() >= 0 and scores.max() <= 1 and np.allclose(scores.sum(1), 1, atol=1e-5):
        found.append("probabilities: scores look like the output of a softmax; give the model's logits")
    flat, unknown = (np.asarray(where)[: len(X)].mean() for where in _flat(as_pytree(model), x, labels))
    if flat > 0.01:
        found.append(f"zero gradients: of the cross-entropy, at {flat:.0%} of the inputs")
    if unknown > 0:
        found.append(f"gradients that are not finite: of the cross-entropy, at {unknown:.0%} of the inputs")
    for what, odd in (("NaN", np.isnan(scores)), ("infinite", np.isinf(scores))):
        if odd.any():
            found.append(f"scores that are {what}: at {odd[: len(X)].any(1).mean():.0%} of the inputs")
    text = str(traces[0])
    if operations := [name for name in ZERO_GRADIENT_PRIMITIVES if re.search(rf"= {name}\b", text)]:
        found.append(f"flat operations: no gradient passes through {', '.join(operations)}")
    if "square" in names and (n := int(np.sum(fallen_to == names.index("square")))):
        found.append(f"square: it broke {n} examples without gradients that the others did not break with them")
    return found


@jax.jit
def _flat(model, x, y):
    """Tell whether the gradient of the cross-entropy is zero, and whether it is not finite, for each input."""
    gradient = jax.grad(lambda z: example_losses(model(z), y).sum())(x).reshape(len(x), -1)
    return (gradient == 0).all(1), ~jnp.isfinite(gradient).all(1)


def _differ(scores, again) -> bool:
    """Tell whether scores differ by more than rounding, or in what is no finite number."""
    finite = np.isfinite(scores) & np.isfinite(again)
    if not np.array_equal(scores[~finite], again[~finite], equal_nan=True):
        return True
    largest = np.abs(scores[finite]).max(initial=1e-30)
    return bool((np.abs(scores[finite] - again[finite]) > 1e-4 * largest).any())


def _same(trace, other) -> bool:
    """Tell whether two traces of a function are of the same operations on the same numbers."""
    if str(trace) != str(other) or len(trace.consts) != len(other.consts):
        return False
    return all(np.array_equal(a, b) for a, b in zip(trace.consts, other.consts, strict=True))
