"""Losses that attacks climb: cross-entropy, squared error, margins, and the difference of logits ratio."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Shaped

from ..execution.convolutions import with_fast_convolutions
from .entry import is_binary, two_columns

# Added to differences of scores that are divided by.
LEAST_GAP = 1e-12


def example_losses(scores: Float[Array, "n c"], y: Shaped[Array, "..."]) -> Float[Array, " n"]:
    """Return the cross-entropy (n,) of integer labels, or the squared error (n,) of real targets.

    One column of scores is that of label 1 against label 0, whose score is zero.

    Raises
    ------
    ValueError
        If there is not one label for each row of scores, or real targets are not shaped like the scores.
    """
    if jnp.issubdtype(y.dtype, jnp.integer):
        if y.shape != scores.shape[:1]:
            raise ValueError(
                f"integer labels must be of shape {scores.shape[:1]}, one for each row of scores, got {y.shape}; "
                "one-hot or other real targets must be floating"
            )
        return _cross_entropy(two_columns(scores) if is_binary(scores.shape, y) else scores, y)
    if y.shape != scores.shape:
        raise ValueError(f"real targets must be shaped like the scores, {scores.shape}, got {y.shape}")
    return jnp.sum((scores - y.astype(scores.dtype)) ** 2, axis=1)


def _cross_entropy(scores: Float[Array, "n c"], y: Integer[Array, " n"]) -> Float[Array, " n"]:
    """Return log(1 + Σ_{c ≠ y} exp(s_c − s_y)), which is not rounded to zero where the model is sure."""
    return jax.nn.softplus(log_odds(scores, y))


def log_odds(scores: Float[Array, "n c"], y: Integer[Array, " n"]) -> Float[Array, " n"]:
    """Return log Σ_{c ≠ y} exp(s_c − s_y) (n,), which rises with the cross-entropy.

    Its gradient has the direction of the cross-entropy's, without the factor that rounds to zero where the model
    is very sure: the probability of a wrong answer.
    """
    return jax.nn.logsumexp(others(scores, y), axis=1) - scores_at(scores, y)


def ascent_losses(scores: Float[Array, "n c"], y: Shaped[Array, "n ..."]) -> Float[Array, " n"]:
    """Return what rises with :func:`example_losses`, for attacks that ask for its order and direction alone."""
    return log_odds(scores, y) if jnp.issubdtype(y.dtype, jnp.integer) else example_losses(scores, y)


def answers_wrongly(scores: Float[Array, "n c"], y: Integer[Array, " n"]) -> Bool[Array, " n"]:
    """Tell whether the highest score is another's (n,); scores of which one is NaN are no answer at all."""
    return (scores.argmax(1) != y) & ~jnp.isnan(scores).any(1)


def margin(scores: Float[Array, "n c"], y: Integer[Array, " n"]) -> Float[Array, " n"]:
    """Return the margin z_y − max_{c≠y} z_c (n,) of scores (n, C) and labels (n,).

    It is negative where the answer is wrong, and infinite where scores are NaN, since that is no answer.

    >>> margin(jnp.array([[2.0, 0.5, 1.0]]), jnp.array([0])).tolist()
    [1.0]
    """
    found = scores_at(scores, y) - others(scores, y).max(1)
    return jnp.where(jnp.isnan(found), jnp.inf, found)


def dlr(
    scores: Float[Array, "n c"], y: Integer[Array, " n"], target: Integer[Array, " n"] | None
) -> Float[Array, " n"]:
    """Return the difference of logits ratio (n,) of scores (n, C) and labels (n,); ``target`` is not used."""
    ordered = jnp.sort(scores, axis=1)
    return (others(scores, y).max(1) - scores_at(scores, y)) / (ordered[:, -1] - ordered[:, -3] + LEAST_GAP)


def targeted_dlr(
    scores: Float[Array, "n c"], y: Integer[Array, " n"], target: Integer[Array, " n"]
) -> Float[Array, " n"]:
    """Return the difference of logits ratio towards the class ``target`` (n,) of each example."""
    ordered = jnp.sort(scores, axis=1)
    return (scores_at(scores, target) - scores_at(scores, y)) / (
        ordered[:, -1] - (ordered[:, -3] + ordered[:, -4]) / 2 + LEAST_GAP
    )


def gradient_of(
    loss: Callable, model: Callable, x: Float[Array, "n ..."]
) -> tuple[Float[Array, "n ..."], Float[Array, " n"], Float[Array, "n c"]]:
    """Return the gradient of a loss of scores by the inputs, the loss of each example, and the scores."""

    def total(z):
        scores = with_fast_convolutions(model)(z)
        values = loss(scores)
        return values.sum(), (values, scores)

    gradient, (values, scores) = jax.grad(total, has_aux=True)(x)
    return gradient, values, scores


LOSSES = {"ce": lambda scores, y, target: ascent_losses(scores, y), "dlr": dlr, "targeted-dlr": targeted_dlr}
CLASSES_NEEDED = {"ce": 1, "dlr": 3, "targeted-dlr": 4}


def check_classes(loss: str, n_classes: int, y: jax.Array) -> None:
    """Raise ValueError for a loss that needs more classes, or labels in place of real targets."""
    if n_classes < CLASSES_NEEDED[loss]:
        raise ValueError(
            f"loss={loss!r} needs {CLASSES_NEEDED[loss]} classes or more, but the model gives {n_classes} scores; "
            "use loss='ce'"
        )
    if loss != "ce" and not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"loss={loss!r} needs integer labels, got {y.dtype}; use loss='ce'")


def scores_at(scores: Float[Array, "n c"], y: Integer[Array, " n"]) -> Float[Array, " n"]:
    """Return the score (n,) of one class of each example."""
    return jnp.take_along_axis(scores, y[:, None], axis=1)[:, 0]


def others(scores: Float[Array, "n c"], y: Integer[Array, " n"]) -> Float[Array, "n c"]:
    """Return the scores of the classes other than one of each example; its own are minus infinity."""
    return jnp.where(jax.nn.one_hot(y, scores.shape[1], dtype=bool), -jnp.inf, scores)
