"""Gradients whole and as factors: one object in two forms, in NumPy and JAX, and when which is taken."""

from dataclasses import dataclass
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.tangent.gradient_lists import concatenate_tiles, concatenate_uses
from ntkrobust_sk.tangent.gradients import DenseGradients, Layout, OuterProducts
from ntkrobust_sk.tangent.per_example import USES_PER_GRADIENT, forms_gradient


@pytest.fixture(autouse=True)
def double_precision():
    with enable_x64(True):
        yield


# Compiling dominates and running does not.
quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
in_each_library = pytest.mark.parametrize("library", [np, jnp], ids=["numpy", "jax"])

# Layouts: the array's shape, the steps, and what they do to one array

LAYOUTS = {
    "as it is": ((2, 3), [], lambda a: a),
    "a number": ((), [("reshape", (1, 1, 1))], lambda a: a.reshape(1, 1, 1)),
    "reshaped": ((4, 3), [("reshape", (2, 6))], lambda a: a.reshape(2, 6)),
    "transposed": ((4, 3), [("transpose", (1, 0))], lambda a: a.T),
    "cyclically transposed": ((2, 3, 4), [("transpose", (1, 2, 0))], lambda a: a.transpose(1, 2, 0)),
    "transposed twice": (
        (2, 3, 4),
        [("transpose", (1, 2, 0)), ("transpose", (1, 2, 0))],
        lambda a: a.transpose(2, 0, 1),
    ),
    "a dense layer": (
        (4, 3),
        [("transpose", (1, 0)), ("reshape", (1, 3, 4))],
        lambda a: a.T[None],
    ),
    "filters": (
        (3, 2, 5, 4),
        [("transpose", (3, 0, 1, 2)), ("reshape", (1, 4, 30))],
        lambda a: np.moveaxis(a, 3, 0).reshape(1, 4, 30),
    ),
    "grouped filters": (
        (2, 2, 3, 6),
        [("transpose", (3, 0, 1, 2)), ("reshape", (2, 3, 12))],
        lambda a: np.moveaxis(a, 3, 0).reshape(2, 3, 12),
    ),
    "in between, transposed and reshaped": (
        (6, 4),
        [("reshape", (2, 3, 4)), ("transpose", (2, 0, 1)), ("reshape", (8, 3)), ("transpose", (1, 0))],
        lambda a: a.reshape(2, 3, 4).transpose(2, 0, 1).reshape(8, 3).T,
    ),
    "with axes of length one": (
        (3, 1, 2),
        [("reshape", (3, 2)), ("reshape", (1, 3, 2, 1)), ("transpose", (3, 2, 1, 0))],
        lambda a: a.reshape(1, 3, 2, 1).transpose(3, 2, 1, 0),
    ),
}


def layout_of(shape, steps):
    layout = Layout(shape)
    for name, argument in steps:
        layout = layout.followed_by(name, argument)
    return layout


def numbered(*shape):
    return np.arange(np.prod(shape, dtype=int), dtype=float).reshape(shape)


@pytest.mark.slow
@in_each_library
@pytest.mark.parametrize("lead", [(), (2,), (2, 5)], ids=["no leading axes", "one", "two"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_undone_exactly_whatever_axes_come_first(name, lead, library):
    shape, steps, expected = LAYOUTS[name]
    layout, array = layout_of(shape, steps), library.asarray(numbered(*lead, *shape))
    seen = layout.view(array)
    each = np.asarray(array).reshape(-1, *shape)
    np.testing.assert_array_equal(seen.reshape(len(each), *seen.shape[len(lead) :]), [expected(a) for a in each])
    back = layout.inverse(seen.reshape(*lead, -1))
    assert type(back) is type(array)
    np.testing.assert_array_equal(back, array)
    np.testing.assert_array_equal(layout.view(back), seen)


def test_layouts_are_compared_and_hashed_by_value():
    first, again = (Layout((4, 3)).followed_by("transpose", np.array([1, 0])) for _ in range(2))
    assert first == again == Layout((4, 3), (("transpose", (1, 0)),))
    assert hash(first) == hash(again)
    assert first != Layout((4, 3)).followed_by("transpose", (0, 1))


# Gradients: directions, examples, groups, positions, inputs and outputs of one group, and the array's layout

DENSE = [("transpose", (1, 0)), ("reshape", (1, 3, 4))]
CASES = {
    "a dense layer": ((2, 5, 1, 1, 4, 3), (4, 3), DENSE),
    "one direction": ((1, 5, 1, 1, 4, 3), (4, 3), DENSE),
    "one example": ((2, 1, 1, 1, 4, 3), (4, 3), DENSE),
    "positions": ((2, 5, 1, 6, 4, 3), (2, 2, 1, 3), [("transpose", (3, 0, 1, 2)), ("reshape", (1, 3, 4))]),
    "groups": ((2, 5, 3, 1, 4, 2), (3, 2, 4), []),
    "groups and positions": ((3, 4, 3, 6, 4, 2), (4, 6), [("transpose", (1, 0)), ("reshape", (3, 2, 4))]),
    "depthwise filters": ((2, 4, 5, 6, 4, 1), (2, 2, 1, 5), [("transpose", (3, 0, 1, 2)), ("reshape", (5, 1, 4))]),
}
TOKENS = {
    "a table looked up": ((2, 5, 1, 1, 4, 3), (4, 3), [("reshape", (1, 4, 3)), ("transpose", (0, 2, 1))]),
    "a table looked up at positions": (
        (2, 5, 1, 6, 4, 3),
        (4, 3),
        [("reshape", (1, 4, 3)), ("transpose", (0, 2, 1))],
    ),
}


def draw(name, library, n=None, seed=0):
    """OuterProducts as of a layer, and the gradients (r, n, g, o, k) that they stand for."""
    (r, n_examples, g, s, k, o), shape, steps = (CASES | TOKENS)[name]
    rng, n = np.random.default_rng(seed), n or n_examples
    cotangents = rng.normal(size=(r, n, g, s, o))
    if name in TOKENS:
        inputs = rng.integers(0, k, size=(n, 1, s, 1))
        seen = np.eye(k)[inputs[..., 0]]
    else:
        inputs = seen = rng.normal(size=(n, g, s, k))
    gradients = np.einsum("rngso,ngsk->rngok", cotangents, seen)
    return OuterProducts(library.asarray(inputs), library.asarray(cotangents), layout_of(shape, steps)), gradients


def assert_close(found, expected, rtol=1e-13):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


def both_forms(name, library, **options):
    """(form, gradients in it, the array (r, n, p) that they are) for whole gradients and factors."""
    factors, dense = draw(name, library, **options)
    dense = dense.reshape(*dense.shape[:2], -1)
    return [(factors, dense), (DenseGradients(library.asarray(dense), factors.layout), dense)]


N_EXAMPLES, N_OTHERS = 5, 3
ROWS = {"a slice": slice(1, 4), "indices": np.array([3, 0, 3]), "a mask": np.arange(N_EXAMPLES) > 2}


def everything(left, right, tangent, weights):
    """All that gradients are asked for, in either form."""
    return {
        "whole": left.dense(),
        "inner": left.inner(right),
        "inner with themselves": left.inner(left),
        "inner_sum": left.inner_sum(right),
        "inner_sum with themselves": left.inner_sum(left),
        "inner_all": left.inner_all(right),
        "push": left.push(tangent),
        "weighted": left.weighted(weights),
        "weighted for one target": left.weighted(weights[:, :, :1]),
        **{how: left[rows] for how, rows in ROWS.items()},
        "in single precision": left.astype("float32"),
        "inner in single precision": left.astype("float32").inner(right.astype("float32")),
        "single and double precision": left.astype("float32").astype("float64").inner(right),
    }


@dataclass(frozen=True)
class Asked:
    """Gradients in one form, those of other examples, and what they answered."""

    gradients: DenseGradients | OuterProducts
    dense: np.ndarray
    others: np.ndarray
    tangent: np.ndarray
    weights: np.ndarray
    found: dict


@lru_cache
def asked(name, library) -> list[Asked]:
    """Both forms, asked everything in NumPy as they are and in JAX compiled as one."""
    result = []
    pairs = zip(
        both_forms(name, library, n=N_EXAMPLES), both_forms(name, library, n=N_OTHERS, seed=1), strict=True
    )
    for (left, dense), (right, others) in pairs:
        rng = np.random.default_rng(2)
        tangent, weights = rng.normal(size=left.layout.shape), rng.normal(size=(*dense.shape[:2], 3))
        answer = everything if library is np else quickly(everything)
        result.append(Asked(left, dense, others, tangent, weights, answer(left, right, tangent, weights)))
    return result


each_case = pytest.mark.parametrize("name", CASES | TOKENS)


@pytest.mark.slow
@in_each_library
@each_case
def test_factors_are_the_gradients_that_they_stand_for(name, library):
    for case in asked(name, library):
        whole, layout = case.found["whole"], case.gradients.layout
        assert type(whole) is DenseGradients
        assert whole.layout == layout
        assert_close(whole.values, case.dense)
        # in the parameter array's own order
        gradient = whole.layout.inverse(whole.values)
        assert gradient.shape == (*case.dense.shape[:2], *layout.shape)
        np.testing.assert_array_equal(layout.view(gradient).reshape(whole.values.shape), whole.values)


@pytest.mark.slow
@in_each_library
@each_case
def test_inner_products_are_those_of_the_gradients(name, library):
    for case in asked(name, library):
        assert_close(case.found["inner"], np.einsum("rnp,rmp->rnm", case.dense, case.others))
        assert_close(case.found["inner with themselves"], np.einsum("rnp,rmp->rnm", case.dense, case.dense))
        assert_close(case.found["inner_sum"], np.einsum("rnp,rmp->nm", case.dense, case.others))
        assert_close(case.found["inner_sum with themselves"], np.einsum("rnp,rmp->nm", case.dense, case.dense))
        assert_close(case.found["inner_all"], np.einsum("rnp,qmp->rnqm", case.dense, case.others))


@each_case
def test_inner_products_of_numpy_arrays_are_numpy_arrays(name):
    for case in asked(name, np):
        for product in ("inner", "inner_sum", "inner_all", "inner with themselves", "push"):
            assert type(case.found[product]) is np.ndarray


@pytest.mark.slow
@in_each_library
@each_case
def test_pushing_a_tangent_takes_its_inner_product_with_every_gradient(name, library):
    for case in asked(name, library):
        seen = case.gradients.layout.view(case.tangent).reshape(-1)
        assert_close(case.found["push"], case.dense @ seen)


@in_each_library
@each_case
def test_weighted_gradients_are_sums_over_the_examples(name, library):
    for case in asked(name, library):
        expected = np.einsum("rnt,rnp->rtp", case.weights, case.dense)
        assert_close(case.found["weighted"], expected)
        assert_close(case.found["weighted for one target"], expected[:, :1])


@pytest.mark.slow
@in_each_library
@each_case
def test_some_examples_are_taken_by_a_slice_their_indices_or_a_mask(name, library):
    for case in asked(name, library):
        for how, rows in ROWS.items():
            some = case.found[how]
            assert type(some) is type(case.gradients)
            assert some.layout == case.gradients.layout
            for leaf, whole in zip(jax.tree.leaves(some), jax.tree.leaves(case.gradients), strict=True):
                # the cotangents of factors and the values of whole gradients have directions first
                taken = whole[:, rows] if whole.shape[0] == len(case.dense) and whole.ndim != 4 else whole[rows]
                np.testing.assert_array_equal(leaf, taken)


@in_each_library
@each_case
def test_precision_is_changed_without_changing_which_rows_a_table_gave(name, library):
    for case in asked(name, library):
        single = case.found["in single precision"]
        assert type(single) is type(case.gradients)
        assert jax.tree.leaves(single)[-1].dtype == np.float32
        if isinstance(single, OuterProducts):
            assert single.inputs.dtype == (case.gradients.inputs.dtype if name in TOKENS else np.float32)
        expected = np.einsum("rnp,rmp->rnm", case.dense, case.others)
        assert_close(case.found["inner in single precision"], expected.astype(np.float32), rtol=1e-6)
        mixed = case.found["single and double precision"]
        assert mixed.dtype == np.float64
        np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_weights_of_more_precision_than_the_gradients_decide_that_of_their_sum():
    for gradients, dense in both_forms("positions", jnp):
        weights = np.random.default_rng(3).normal(size=(*dense.shape[:2], 2))
        single = gradients.astype("float32")
        rounded = np.asarray(single.astype("float64").dense().values)
        assert_close(single.weighted(weights), np.einsum("rnt,rnp->rtp", weights, rounded))


@each_case
def test_gradients_go_into_compiled_functions_and_come_out_of_them(name):
    for gradients, dense in both_forms(name, jnp):
        again = jax.tree.map(np.asarray, quickly(lambda g: g[:1])(gradients))
        assert type(again) is type(gradients)
        assert again.layout == gradients.layout
        assert_close(again.dense().values, dense[:, :1])


@each_case
def test_an_array_used_more_than_once_has_the_sum_of_its_uses_gradients(name):
    parts = [draw(name, np, seed=seed) for seed in range(3)]
    together = jax.tree.map(np.asarray, quickly(concatenate_uses)([factors for factors, _ in parts]))
    dense = sum(gradients for _, gradients in parts)
    assert type(together) is OuterProducts
    assert together.inputs.shape[2] == together.cotangents.shape[3] == 3 * parts[0][0].inputs.shape[2]
    assert_close(together.dense().values, dense.reshape(*dense.shape[:2], -1))
    assert concatenate_uses([parts[0][0]]) is parts[0][0]


@pytest.mark.slow
@in_each_library
@each_case
def test_features_of_a_few_examples_at_a_time_are_stacked_in_numpy(name, library):
    leaves = [gradients for gradients, _ in both_forms(name, library, n=N_EXAMPLES)]
    ends = [0, 2, 3, N_EXAMPLES]
    parts = ([leaf[start:end] for leaf in leaves] for start, end in zip(ends, ends[1:], strict=False))
    found = concatenate_tiles(parts, N_EXAMPLES)
    assert jax.tree.structure(found) == jax.tree.structure(leaves)
    for leaf, expected in zip(jax.tree.leaves(found), jax.tree.leaves(leaves), strict=True):
        assert type(leaf) is np.ndarray
        assert leaf.dtype == expected.dtype
        np.testing.assert_array_equal(leaf, expected)


# Which of the two

SHAPES = {
    # positions, inputs and outputs of a layer, directions, all pairs of directions: whether gradients are formed
    "dense, of images": ((1, 784, 512, 10, False), False),
    "dense, of images, all pairs": ((1, 784, 512, 10, True), False),
    "dense, to the logits": ((1, 512, 10, 10, False), False),
    "dense, to the logits, summed": ((1, 512, 10, 1, False), False),
    "first convolution, one colour": ((28 * 28, 9, 32, 10, False), True),
    "first convolution, three colours": ((32 * 32, 27, 64, 10, False), True),
    "first convolution, summed": ((32 * 32, 27, 64, 1, False), True),
    "first convolution, all pairs": ((32 * 32, 27, 64, 10, True), True),
    "convolution of 64 channels at 32x32": ((32 * 32, 576, 64, 10, False), True),
    "convolution of 512 channels at 4x4": ((4 * 4, 4608, 512, 10, False), False),
    "convolution of 512 channels at 4x4, summed": ((4 * 4, 4608, 512, 1, False), False),
    "convolution of 512 channels at 4x4, all pairs": ((4 * 4, 4608, 512, 10, True), False),
    "a number for each channel": ((1, 1, 1, 10, False), True),
}


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_formed_for_many_positions_and_kept_as_factors_for_few(name):
    shape, forms = SHAPES[name]
    assert forms_gradient(*shape) is forms


@pytest.mark.parametrize("all_pairs", [False, True], ids=["each direction", "all pairs of directions"])
@pytest.mark.parametrize("n_in, n_out", [(9, 16), (576, 64), (4608, 512)])
def test_more_positions_make_factors_dearer_until_gradients_are_formed(n_in, n_out, all_pairs):
    decisions = [forms_gradient(2**i, n_in, n_out, 10, all_pairs) for i in range(14)]
    assert decisions == sorted(decisions)
    assert decisions[-1]
    assert not decisions[0]


@quickly
def factored(left, right):
    return left.inner(right)


@quickly
def formed(left, right):
    # the columns' gradients were formed with the tile before, the rows' with this one
    return left.dense().inner(DenseGradients(right, left.layout))


@pytest.mark.slow
@pytest.mark.parametrize("n_positions, n_in, n_out", [(1, 256, 128), (4, 256, 128), (256, 27, 16), (1024, 9, 8)])
def test_what_is_chosen_takes_fewer_operations_as_the_compiler_counts_them(n_positions, n_in, n_out):
    def drawn(shape):
        return jax.ShapeDtypeStruct(shape, np.float32)

    directions, layout = 2, Layout((1, n_out, n_in))
    tile = OuterProducts(
        drawn((USES_PER_GRADIENT, 1, n_positions, n_in)),
        drawn((directions, USES_PER_GRADIENT, 1, n_positions, n_out)),
        layout,
    )
    whole = drawn((directions, USES_PER_GRADIENT, n_out * n_in))
    operations = {
        form: function.lower(tile, other).compile().cost_analysis()["flops"]
        for form, function, other in [(False, factored, tile), (True, formed, whole)]
    }
    chosen = forms_gradient(n_positions, n_in, n_out, directions, False)
    assert operations[chosen] < operations[not chosen]
