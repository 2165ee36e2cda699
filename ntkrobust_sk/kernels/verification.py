"""The comparison of a network's gradients, as they are read from its structure, with a plain backward pass.

What is verified is how the network's jaxpr is read, which depends on the network and on shapes, not on numbers. So
a few rows are enough, and numbers are chosen such that nothing can hide: inputs and parameters are moved a little
at random (zeros too, as in last layers that start at zero), which breaks ties, and everything is computed in
double precision, where both ways agree to 1e-9 or one of them is wrong. In single precision two programs may take
different sides of a ReLU, and a sound network would look wrong.

A network that rounds by itself (layers in bfloat16) allows no such comparison. There, what its coarsest dtype
explains is allowed.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from ..execution.convolutions import convolution_by_products, double_by_products, is_by_products
from ..execution.devices import at_host
from ..execution.precision import enable_x64, x64_enabled
from ..execution.rewriting import rewritten
from ..networks.chosen_parameters import map_parameters
from ..networks.inputs import shapes_of
from ..networks.model import Model, Variables
from ..tangent.gradient_lists import split_biases
from ..tangent.jaxpr import subjaxprs
from .abstract_features import abstract_features

# Rows that are compared: more than one, since they must not see each other.
ROWS = 2
# Largest difference in double precision, relative to the norm of an array's gradient.
EXACT = 1e-9
# How far inputs and parameters are moved, relative to their size.
MOVED = 0.05
# A program that runs once is hardly optimised, unless it has more operations than these: then compiling it well
# pays.
QUICK_OPERATIONS = 2e10
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
# Kernels, networks and shapes whose reading is verified.
_VERIFIED = set()


def verify(kernel, model: Model, x: np.ndarray) -> bool:
    """Raise ArithmeticError unless a tangent kernel's gradients are those of a plain backward pass.

    Done once for each network, shape and dtype of parameters and inputs, and for all kernels together that take
    the same gradients of them; the parameters' values and the rows that happen to come first do not matter.

    Parameters
    ----------
    kernel : TangentKernel
    model : Model
    x : array (n, ...)
        One row is enough.

    Returns
    -------
    bool
        Whether there was something to verify.
    """
    return start_verification(kernel, model, x)()


def start_verification(kernel, model: Model, x: np.ndarray) -> Callable[[], bool]:
    """Start what :func:`verify` does, and return what ends it: meanwhile a thread compiles the program."""
    leaves, tree = jax.tree.flatten(model)
    about = (tree, shapes_of(leaves), x.shape[1:], x.dtype, x64_enabled())
    if (kernel, about) in _VERIFIED:
        return bool
    # at the host: GPUs are slow in double precision, and lack algorithms for some convolutions
    with at_host():
        model = jax.tree.map(_at_host, model)
        rows = _rows(np.asarray(x[:ROWS]))
        n_directions = min(2, len(kernel.output_directions(model, rows)))
        verified = {(kernel, about), (kernel.reading, n_directions, about)}
        if verified & _VERIFIED:
            _VERIFIED.update(verified)
            return bool
        compare = start_comparison(kernel, n_directions, *_case(model, rows, moved=True))

    def finish():
        with at_host():
            error, tolerance = compare()
            if not math.isfinite(error):
                # where moved parameters left what the network is defined for, they are taken as they are
                case = _case(model, rows, moved=False)
                error, tolerance = relative_error_to_backward(kernel, n_directions, *case)
        _require_small(error, tolerance, model)
        # what overflowed shows nothing
        if math.isfinite(error):
            _VERIFIED.update(verified)
        return True

    return finish


def _require_small(error: float, tolerance: float, model: Model) -> None:
    if error > tolerance:
        raise ArithmeticError(
            f"gradients read from the structure of {model.network!r} differ from a plain backward pass by "
            f"{error:.2g} of their norm (more than {tolerance:.1g}). Either its outputs depend on the other rows "
            "of a batch (batch norm in training mode?), or it holds an operation that was read wrongly: please "
            "report it with the network"
        )


def relative_error_to_backward(kernel, n_directions: int, model: Model, x: np.ndarray) -> tuple[float, float]:
    """Return how far both ways are apart, and may be; in double precision where the network allows it."""
    return start_comparison(kernel, n_directions, model, x)()


def start_comparison(kernel, n_directions: int, model: Model, x: np.ndarray) -> Callable[[], tuple[float, float]]:
    """Start :func:`relative_error_to_backward`, and return what ends it: meanwhile a thread compiles."""
    random, n_logits = np.random.default_rng(1), kernel.output_directions(model, x).shape[1]
    directions, weights = (random.normal(size=(n_directions, size)) for size in (n_logits, len(x)))
    traced, compiled = None, None
    # a network may have no such form, for whatever reason; without one its own errors come below
    with enable_x64(True), suppress(Exception):
        program = _both_ways.trace(kernel, *jax.tree.map(_double, (model, x)), directions, weights)
        traced = program, program.lower()
    if traced and _form(traced[0].out_info[0]) == _own_form(kernel, model, x):
        compiled = _compiled_meanwhile(traced[1])

    def compare():
        program, found = traced and traced[0], None
        if compiled is not None:
            # a host callback that knows single precision alone fails when it runs
            with enable_x64(True), suppress(jax.errors.JaxRuntimeError):
                found = compiled()(*jax.tree.map(_double, (model, x)), directions, weights)
                found = jax.tree.map(np.asarray, found)
        if found is None or program is None:
            own = [np.asarray(array, np.float32) for array in (directions, weights)]
            program = _both_ways.trace(kernel, model, x, *own)
            found = jax.tree.map(np.asarray, _compiled_meanwhile(program.lower())()(model, x, *own))
        eps = _coarsest(program.jaxpr.jaxpr)
        features, expected = found
        error = _relative_error(features, expected, weights)
        exact = eps <= jnp.finfo(jnp.float64).eps or not math.isfinite(error)
        return error, EXACT if exact else min(0.3, 30 * eps**0.5)

    return compare


def _compiled_meanwhile(lowered) -> Callable[[], jax.stages.Compiled]:
    """Compile in a thread, and return what waits for the program: compilers do not hold Python's lock."""
    heavy = (lowered.cost_analysis() or {}).get("flops", 0) > QUICK_OPERATIONS
    compiler = ThreadPoolExecutor(1)
    program = compiler.submit(lowered.compile, compiler_options=None if heavy else _quickly())
    compiler.shutdown(wait=False)
    return program.result


@cache
def _quickly() -> dict:
    """Return those options of quick compilation that this compiler knows."""
    least = jax.jit(lambda: 0).lower()

    def knows(option):
        with suppress(jax.errors.JaxRuntimeError):
            return bool(least.compile(compiler_options=dict([option])))

    return dict(filter(knows, QUICKLY.items()))


@partial(jax.jit, static_argnums=0)
def _both_ways(kernel, model, x, directions, weights):
    """Return the features of rows in some directions (R, C), and the gradient of their sum at weights (R, n).

    One backward pass gives the sum: no row and no direction can take the place of another that has another weight.
    """

    def apply(params):
        return Model(model.network, Variables(params, model.variables.state))(x)

    apply = rewritten(apply, lambda eqn: partial(convolution_by_products, eqn) if is_by_products(eqn) else None)
    with double_by_products(), jax.default_matmul_precision("highest"):
        logits, pull = jax.vjp(apply, model.variables.params)
        directions = directions.astype(logits.dtype)
        (expected,) = pull((weights.T @ directions.astype(weights.dtype)).astype(logits.dtype))
        return kernel.features(model, x, directions), jax.tree.leaves(expected)


def _relative_error(features, expected, weights: np.ndarray) -> float:
    """Return the largest error of a parameter array; NaN where one is not finite.

    Errors are relative to the norm of what is summed, which may cancel, or to a thousandth of that of all arrays.
    NumPy makes the sums: a program that is hardly optimised would be slow at them.
    """
    errors, norms = [], []
    for leaf, whole in zip(split_biases(features), expected, strict=True):
        # what overflows is found in the result
        with np.errstate(over="ignore", invalid="ignore"):
            parts = leaf.astype(np.float64).dense().values.reshape(weights.size, -1)
            summed, whole = leaf.layout.inverse(weights.reshape(-1) @ parts), whole.astype(np.float64)
            each = [weight * _norm(part) for weight, part in zip(weights.flat, parts, strict=True)]
            errors.append(_norm(summed - whole))
        norms.append(max(math.hypot(*each), _norm(whole)))
    if not np.isfinite(errors).all():
        return math.nan
    floor = max(1e-3 * math.hypot(*norms), np.finfo(np.float64).tiny)
    return max(error / max(norm, floor) for error, norm in zip(errors, norms, strict=True))


def _norm(array: np.ndarray) -> float:
    flat = array.ravel()
    return math.sqrt(np.dot(flat, flat))


def _at_host(leaf):
    """Return a leaf in NumPy, so that no device holds it; but keys have no such form."""
    return leaf if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key) else np.asarray(leaf)


def _rows(x: np.ndarray) -> np.ndarray:
    """Return as many rows as are compared, the missing ones with a row's entries in another order."""
    while len(x) < ROWS:
        x = np.concatenate([x, np.roll(x[:1].reshape(1, -1), len(x), axis=1).reshape(1, *x.shape[1:])])
    return x


def _case(model, x, moved):
    """Return the model and the inputs that are compared: as they are, or moved a little."""
    if not moved:
        return model, x
    random = np.random.default_rng(0)

    def move(leaf):
        leaf = np.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        size = np.sqrt(np.mean(np.abs(np.asarray(leaf, complex)) ** 2)) if leaf.size else 0.0
        noise = random.normal(size=leaf.shape)
        change = np.where(leaf == 0, noise * (MOVED * size or MOVED), leaf * (MOVED * np.tanh(noise)))
        return (leaf + change).astype(leaf.dtype)

    return map_parameters(move, model), move(x)


def _double(leaf):
    """Return a leaf in double precision, if it is floating."""
    dtype = jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.asarray(leaf, np.complex128)
    return np.asarray(leaf, np.float64) if jnp.issubdtype(dtype, jnp.floating) else leaf


def _own_form(kernel, model, x):
    """Return the form of the features in the network's own precision, as they were traced to plan a matrix."""
    abstract = abstract_features(kernel, model, x.shape[1:], x.dtype)
    return _form(abstract.features(abstract.n_directions))


def _form(features) -> list:
    """Return how each array's gradient is read, and its sizes but for rows and directions."""
    sizes = [[getattr(leaf, name).shape[axis + 1 :] for name, axis in leaf.AXES.items()] for leaf in features]
    return list(zip(map(jax.tree.structure, features), sizes, strict=True))


def _coarsest(jaxpr) -> float:
    """Return the resolution of the coarsest dtype in which a jaxpr computes."""
    found = [0.0]
    for eqn in jaxpr.eqns:
        dtypes = [getattr(var.aval, "dtype", np.dtype(bool)) for var in eqn.outvars]
        found += [float(jnp.finfo(dtype).eps) for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
        found += [_coarsest(inner) for inner in subjaxprs(eqn)]
    return max(found)
