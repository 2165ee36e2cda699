"""neural-tangents through the bridge: right on this JAX, without a trace in it, and our peer at its best."""

import json
import subprocess
import sys
from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ntkrobust_sk import CNN, MLP, FullNTK, Model, Stateless, TraceNTK, Variables
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.kernels.neural_tangents_bridge import import_neural_tangents

# Compiling dominates and running does not.
quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
IMPLEMENTATIONS = ("JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS", "STRUCTURED_DERIVATIVES")
N_OUTPUTS = 3


@pytest.fixture(scope="module")
def installed():
    if find_spec("neural_tangents") is None or find_spec("frozendict") is None:
        pytest.skip("needs: pip install --no-deps neural-tangents==0.6.5 frozendict")


@pytest.fixture(scope="module")
def nt(installed):
    return import_neural_tangents()


def close(found, expected, rtol):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


# Empirical kernels


def tied(params, x):
    return jnp.tanh(jnp.tanh(x @ params) @ params.T) @ params


def nested(params, x):
    h = lax.scan(lambda h, _: (jnp.tanh(h @ params["square"]), None), x, None, length=2)[0]
    return jax.checkpoint(lambda h: jnp.sin(jnp.tanh(h)))(h) @ params["out"]


def normalized(params, x):
    """Layer norm, and batch norm whose statistics are constants."""
    h = x @ params["first"]
    h = (
        params["scale"] * (h - h.mean(1, keepdims=True)) * lax.rsqrt(h.var(1, keepdims=True) + 1e-5)
        + params["shift"]
    )
    h = jnp.tanh(h) @ params["second"]
    return params["out_scale"] * lax.rsqrt(jnp.arange(1.0, 1 + N_OUTPUTS) + 1e-5) * (h - 0.1)


def zeros(**shapes):
    return lambda key, input_shape: {name: jnp.zeros(shape) for name, shape in shapes.items()}


CASES = {
    "dense": (MLP(n_outputs=N_OUTPUTS, widths=(5, 4)), (4,)),
    "convolutions with strides": (CNN(n_outputs=N_OUTPUTS, widths=(3, 2, 2), strides=(1, 2, 3)), (7, 5, 2)),
    "shared weights": (Stateless(tied, lambda key, shape: jnp.zeros((4, N_OUTPUTS))), (4,)),
    "scan and remat": (Stateless(nested, zeros(square=(4, 4), out=(4, N_OUTPUTS))), (4,)),
    "normalisation": (
        Stateless(normalized, zeros(first=(4, 5), scale=(5,), shift=(5,), second=(5, 3), out_scale=(3,))),
        (4,),
    ),
}


def draw(network, input_shape):
    """A model in float64, as far from its start as after training, and five inputs."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), input_shape)).params
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape, scale=0.5), shapes)
    return Model(network, Variables(params)), rng.normal(size=(5, *input_shape))


def logits(network):
    return lambda params, x: network.apply(params, (), x)[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("error:No Jacobian rule found", "ignore:this network has parameters inside")
@pytest.mark.parametrize("case", CASES)
def test_empirical_kernels_are_those_of_the_dense_jacobian_and_ours(nt, case):
    """In all three implementations; the trace is divided by the number of logits."""
    network, shape = CASES[case]

    @quickly
    def kernels(model, x1, x2):
        found = {"ours": {"full": FullNTK()(model, x1, x2), "trace": TraceNTK()(model, x1, x2)}}
        for name in IMPLEMENTATIONS:
            form = {"vmap_axes": 0, "implementation": nt.NtkImplementation[name]}
            full = nt.empirical_ntk_fn(logits(network), trace_axes=(), **form)
            trace = nt.empirical_ntk_fn(logits(network), trace_axes=(-1,), **form)
            params = model.variables.params
            found[name] = {"full": full(x1, x2, params), "trace": trace(x1, x2, params)}
        return found

    with enable_x64(True):
        model, x = draw(network, shape)
        by_leaf = quickly(jax.jacobian(logits(network)))(model.variables.params, x)
        J = np.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(by_leaf)], axis=2)
        full = np.einsum("ncp,mdp->nmcd", J[:2], J[2:])
        expected = {"full": full, "trace": np.einsum("nmcc->nm", full) / N_OUTPUTS}
        for by_kind in kernels(model, x[:2], x[2:]).values():
            for kind, block in by_kind.items():
                assert block.dtype == np.float64
                close(block, expected[kind], 1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_without_compilation_a_batch_axis_or_second_inputs_kernels_are_the_same(nt, name):
    network, shape = CASES["dense"]
    with enable_x64(True):
        model, x = draw(network, shape)
        expected = quickly(FullNTK())(model, x, x)
        options = {"trace_axes": (), "implementation": nt.NtkImplementation[name]}
        close(nt.empirical_ntk_fn(logits(network), **options)(x, None, model.variables.params), expected, 1e-13)


@pytest.mark.slow
def test_the_automatic_choice_computes_the_kernel_too(nt):
    network, shape = CASES["shared weights"]
    with enable_x64(True):
        model, x = draw(network, shape)
        kernel = nt.empirical_ntk_fn(logits(network), vmap_axes=0, implementation=nt.NtkImplementation.AUTO)
        close(kernel(x[:2], x[2:], model.variables.params), quickly(TraceNTK())(model, x[:2], x[2:]), 1e-13)


def test_structured_derivatives_of_a_dense_network_take_a_hundredth_of_the_operations(nt):
    """Of those that it takes to contract Jacobians: no layer's gradient is formed."""
    network = MLP(n_outputs=10, widths=(512, 512))
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), (784,))).params
    x = jax.ShapeDtypeStruct((64, 784), jnp.float32)

    def count(name):
        options = {"trace_axes": (), "vmap_axes": 0, "implementation": nt.NtkImplementation[name]}
        kernel = jax.jit(nt.empirical_ntk_fn(logits(network), **options))
        return kernel.lower(x, x, params).cost_analysis()["flops"]

    assert 0 < count("STRUCTURED_DERIVATIVES") < count("JACOBIAN_CONTRACTION") / 100


# Infinite width

W_STD, B_STD = 1.3, 0.2


def arc_cosine_ntk(x1, x2, n_layers):
    """NTK of a ReLU network of infinite width (Cho & Saul 2009; Jacot et al. 2018, arXiv:1806.07572)."""
    cross, first, second = x1 @ x2.T / x1.shape[1], (x1**2).mean(1), (x2**2).mean(1)
    cross, first, second = (W_STD**2 * k + B_STD**2 for k in (cross, first, second))
    ntk = cross
    for _ in range(n_layers - 1):
        norms = np.sqrt(np.outer(first, second))
        angle = np.arccos(cross / norms)
        ntk = ntk * (np.pi - angle) / (2 * np.pi)
        cross = norms * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
        cross, first, second = (W_STD**2 * k + B_STD**2 for k in (cross, first / 2, second / 2))
        ntk = cross + W_STD**2 * ntk
    return ntk


@pytest.fixture(scope="module")
def infinite(nt):
    """Kernel function of a ReLU network of three layers, inputs of training and test, targets."""
    dense = partial(nt.stax.Dense, W_std=W_STD, b_std=B_STD)
    *_, kernel_fn = nt.stax.serial(dense(8), nt.stax.Relu(), dense(8), nt.stax.Relu(), dense(1))
    rng = np.random.default_rng(0)
    return kernel_fn, rng.normal(size=(6, 4)), rng.normal(size=(4, 4)), rng.normal(size=(6, 1))


@pytest.mark.slow
def test_the_kernel_of_infinite_width_follows_the_arc_cosine_recursion(infinite):
    kernel_fn, x1, x2, _ = infinite
    with enable_x64(True):
        close(kernel_fn(jnp.asarray(x2), jnp.asarray(x1), "ntk"), arc_cosine_ntk(x2, x1, 3), 1e-12)


def test_a_kernel_computed_in_batches_is_the_same(nt, infinite):
    kernel_fn, x1, x2, _ = infinite
    with enable_x64(True):
        batched = nt.batch(kernel_fn, batch_size=2)(jnp.asarray(x2), jnp.asarray(x1), "ntk")
    close(batched, arc_cosine_ntk(x2, x1, 3), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("time", [5.0, None], ids=["after a while", "in the end"])
def test_predictions_are_those_of_gradient_flow(nt, infinite, time):
    _, x1, x2, y = infinite
    K, k = arc_cosine_ntk(x1, x1, 3) + 1e-3 * np.eye(len(x1)), arc_cosine_ntk(x2, x1, 3)
    eigenvalues, vectors = np.linalg.eigh(K)
    learnt = np.ones(len(x1)) if time is None else 1 - np.exp(-eigenvalues * time / len(x1))
    expected = k @ vectors @ (learnt / eigenvalues * (vectors.T @ y).T).T.reshape(-1, 1)
    with enable_x64(True):
        predict = nt.predict.gradient_descent_mse(jnp.asarray(K), jnp.asarray(y))
        *_, found = predict(time, jnp.zeros((6, 1)), jnp.zeros((4, 1)), jnp.asarray(k))
    close(found, expected, 1e-10)


def test_the_maximal_learning_rate_is_that_of_the_largest_eigenvalue(nt, infinite):
    _, x1, _, _ = infinite
    K = arc_cosine_ntk(x1, x1, 3)
    with enable_x64(True):
        found = nt.predict.max_learning_rate(jnp.asarray(K), eps=0)
    assert found == pytest.approx(2 * len(x1) / np.linalg.eigvalsh(K)[-1], rel=1e-12)


# The import

# What came before must be there afterwards, the same objects, and only JAX's own modules may have joined.
WATCH = """
import json, sys

def public():
    names = [n for n in sys.modules if n.partition(".")[0] == "jax" and "._" not in n]
    return {n: dict(vars(sys.modules[n])) for n in names}

def changes(before):
    found = []
    for name, old in before.items():
        new = vars(sys.modules[name])
        found += [f"{name}.{key}" for key in old if new.get(key, found) is not old[key]]
        found += [f"{name}.{key}" for key in new.keys() - old.keys() if f"{name}.{key}" not in sys.modules]
    return found

import builtins, jax, jax.core, jax.extend.core, jax.interpreters.ad, jax.numpy
{prelude}
from ntkrobust_sk.kernels.neural_tangents_bridge import import_neural_tangents
before, modules, hooks, statement = public(), set(sys.modules), list(sys.meta_path), builtins.__import__
bridged = import_neural_tangents()
new = set(sys.modules) - modules
report = dict(
    changed=changes(before),
    invented=[n for n in new if n.partition(".")[0] == "jax" and not getattr(sys.modules[n], "__file__", None)],
    hooks=hooks == sys.meta_path and statement is builtins.__import__,
    tensorflow="tensorflow" in sys.modules,
)
import neural_tangents as nt
from neural_tangents import stax, predict, batch, NtkImplementation
import neural_tangents.experimental
structured = NtkImplementation.STRUCTURED_DERIVATIVES
kernel = nt.empirical_ntk_fn(lambda w, x: x @ w, implementation=structured, vmap_axes=0)
report |= dict(
    same=bridged is nt is import_neural_tangents() and bridged.stax is stax,
    version=nt.__version__,
    kernel=kernel(jax.numpy.ones((1, 2)), None, jax.numpy.ones((2, 1))).tolist(),
    without_bridge=[
        n for n, m in sys.modules.items()
        if n.startswith("neural_tangents") and type(m.__loader__).__module__ != import_neural_tangents.__module__
    ],
    experimental=[n for n in vars(neural_tangents.experimental) if not n.startswith("__")],
)
print(json.dumps(report))
"""

PRELUDES = {
    "nothing": "",
    "work": "jax.jit(jax.grad(lambda x: jax.numpy.tanh(x)))(1.0)",
    "an import that failed": "try:\n    import neural_tangents\nexcept ImportError:\n    pass",
    "a JAX that has the names": (
        "import types; sys.modules['jax.util'] = jax.util = types.ModuleType('jax.util')\n"
        "jax.core.Jaxpr = jax.core.DShapedArray = jax.interpreters.ad.zeros_like_p = object"
    ),
}


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("prelude", PRELUDES)
def test_a_fresh_process_gets_the_whole_package_and_jax_stays_as_it_was_after(installed, prelude):
    assert json.loads(run(WATCH.replace("{prelude}", PRELUDES[prelude])).splitlines()[-1]) == {
        "changed": [],
        "invented": [],
        "hooks": True,
        "tensorflow": False,
        "same": True,
        "version": "0.6.5",
        "kernel": [[2.0]],
        "without_bridge": [],
        "experimental": [],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "missing, how",
    {"neural_tangents": "sys.path.clear()", "frozendict": "sys.modules['frozendict'] = None"}.items(),
)
def test_where_it_is_not_installed_the_error_says_how_to_install_it(missing, how):
    code = f"""
import sys
from ntkrobust_sk.kernels.neural_tangents_bridge import import_neural_tangents
{how}
try:
    import_neural_tangents()
except ImportError as error:
    print(error)
    print([name for name in sys.modules if name.startswith("neural_tangents")])
"""
    message, left = run(code).splitlines()
    for part in (missing, "pip install --no-deps neural-tangents==0.6.5 frozendict", "ntkrobust_sk[infinite]"):
        assert part in message
    assert "1.8 GB of TensorFlow" in message
    assert left == "[]"
