"""The tangent kernel in scikit-learn's form: its algebra, one call for a matrix, machines under attack."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import jax
import numpy as np
import pytest
import skops.io
from sklearn.base import clone
from sklearn.cluster import SpectralClustering
from sklearn.decomposition import KernelPCA
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, PairwiseKernel, WhiteKernel
from sklearn.kernel_approximation import Nystroem
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVC, SVR

from ntkrobust_sk import MLP, PGD, InfiniteNTK, Model, NTKKernel, as_model, gram, perturb
from ntkrobust_sk.cli.saved_models import load_estimator
from ntkrobust_sk.sklearn_kernels import ntk_kernel
from ntkrobust_sk.sklearn_kernels.kept_matrices import MOST
from ntkrobust_sk.sklearn_models.covariances import covariance, remembered

rng = np.random.default_rng(0)
y = np.arange(30) % 3
X = rng.normal(size=(30, 4)) + np.eye(4)[y] * 2
NETWORK = MLP(n_outputs=3, widths=(8,), activation="tanh")
MODEL = Model(NETWORK, NETWORK.init(jax.random.key(0), (4,)))
KERNEL = NTKKernel(MODEL, scale=0.5)
K = np.asarray(gram("trace", MODEL, X, dtype="float64"))


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the inputs of which matrices are computed, from nothing kept."""
    ntk_kernel._KEPT.clear()
    found = []

    def counted(kernel, model, X, Y=None, **options):
        found.append((len(X), None if Y is None else len(Y)))
        return gram(kernel, model, X, Y, **options)

    monkeypatch.setattr(ntk_kernel, "gram", counted)
    return found


def test_its_matrices_are_those_of_gram_times_the_scale():
    np.testing.assert_allclose(KERNEL(X), 0.5 * K, rtol=1e-6)
    np.testing.assert_allclose(KERNEL(X, X[:7]), 0.5 * K[:, :7], rtol=1e-5)
    np.testing.assert_array_equal(KERNEL(X), KERNEL(X, X))
    assert (KERNEL(X) == KERNEL(X).T).all() and np.linalg.eigvalsh(KERNEL(X))[0] > -1e-9
    for of in (X, X[:20], np.tile(X, (5, 1))):
        np.testing.assert_allclose(KERNEL.diag(of), KERNEL(of).diagonal(), rtol=1e-5)
    pseudo = NTKKernel(MODEL, "pseudo")
    np.testing.assert_allclose(pseudo(X), gram("pseudo", MODEL, X, dtype="float64"), rtol=1e-6)


def test_the_hyperparameter_is_the_logarithm_of_the_scale():
    again = KERNEL.clone_with_theta(np.log([3.0]))
    assert again.scale == pytest.approx(3) and again.model is MODEL and KERNEL.scale == 0.5
    np.testing.assert_allclose(KERNEL.bounds, np.log([[1e-5, 1e5]]))
    step = 1e-6
    up, down = (KERNEL.clone_with_theta(KERNEL.theta + by)(X) for by in (step, -step))
    _, gradient = KERNEL(X, eval_gradient=True)
    np.testing.assert_allclose(gradient[:, :, 0], (up - down) / (2 * step), rtol=1e-6)
    fixed = NTKKernel(MODEL, scale_bounds="fixed")
    assert fixed.theta.size == 0 and fixed(X, eval_gradient=True)[1].shape == (30, 30, 0)
    with pytest.raises(ValueError, match="leave Y away"):
        KERNEL(X, X, eval_gradient=True)


def test_it_is_cloned_compared_printed_and_kept():
    assert clone(KERNEL) == KERNEL != NTKKernel(MODEL) and clone(KERNEL).model is MODEL
    names = {"model", "kernel", "scale", "scale_bounds", "input_shape", "memory", "params"}
    assert set(KERNEL.get_params()) == names
    assert "NTKKernel(Model(MLP(" in repr(KERNEL) and "scale=0.5" in repr(KERNEL + RBF())
    assert not KERNEL.is_stationary()
    for other in (through_skops(KERNEL), pickle.loads(pickle.dumps(KERNEL))):
        np.testing.assert_array_equal(other(X), KERNEL(X))


def through_skops(fitted):
    data = skops.io.dumps(fitted)
    return skops.io.loads(data, trusted=skops.io.get_untrusted_types(data=data))


@pytest.mark.parametrize("machine", [KernelRidge(kernel=KERNEL), GaussianProcessRegressor(KERNEL + WhiteKernel())])
def test_a_machine_on_it_is_saved_by_skops_to_the_bit(machine):
    fitted = clone(machine).fit(X, y)
    np.testing.assert_array_equal(through_skops(fitted).predict(X), fitted.predict(X))


def test_a_support_vector_machine_on_it_is_read_by_the_command(tmp_path):
    machine = make_pipeline(MinMaxScaler(), SVC(kernel=KERNEL)).fit(X, y)
    skops.io.dump(machine, tmp_path / "machine.skops")
    again = load_estimator(tmp_path / "machine.skops")
    np.testing.assert_array_equal(again.decision_function(X), machine.decision_function(X))


def test_sums_products_and_powers_are_those_of_the_matrices():
    for combined, expected in [
        (KERNEL + RBF(), KERNEL(X) + RBF()(X)),
        (2.0 * KERNEL * RBF(), 2 * KERNEL(X) * RBF()(X)),
        (KERNEL**2, KERNEL(X) ** 2),
        (KERNEL + NTKKernel(MODEL, "pseudo"), KERNEL(X) + NTKKernel(MODEL, "pseudo")(X)),
    ]:
        np.testing.assert_allclose(combined(X), expected)
        np.testing.assert_allclose(combined.diag(X), expected.diagonal(), rtol=1e-5)


ONE_CALL = {
    "SVC": SVC(kernel=KERNEL),
    "SVR": SVR(kernel=KERNEL),
    "KernelRidge": KernelRidge(kernel=KERNEL),
    "KernelPCA": KernelPCA(2, kernel=KERNEL),
    "SpectralClustering": SpectralClustering(3, affinity=KERNEL**2, random_state=0),
    "GaussianProcessRegressor": GaussianProcessRegressor(KERNEL + WhiteKernel(), n_restarts_optimizer=2),
    "GaussianProcessClassifier": GaussianProcessClassifier(KERNEL),
}


@pytest.mark.parametrize("name", ONE_CALL)
def test_a_fit_computes_one_matrix(name, calls):
    clone(ONE_CALL[name]).fit(X, y)
    assert calls == [(30, None)]


def test_nystroem_takes_one_matrix_of_its_landmarks(calls):
    Nystroem(KERNEL, n_components=5, random_state=0).fit(X).transform(X)
    assert calls == [(5, None), (30, 5)]


@pytest.mark.parametrize("n_folds", [2, 5])
def test_a_search_computes_each_matrix_once(n_folds, calls):
    folds = list(KFold(n_folds).split(X))
    GridSearchCV(KernelRidge(kernel=KERNEL), {"alpha": [1e-3, 0.1, 10]}, cv=folds).fit(X, y)
    expected = [pair for fit, test in folds for pair in ((len(fit), None), (len(test), len(fit)))]
    assert calls == [*expected, (30, None)]


@pytest.mark.skipif(find_spec("neural_tangents") is None, reason="neural-tangents is not installed")
def test_a_search_computes_each_matrix_of_a_kernel_without_a_model_once(calls):
    kernel = NTKKernel(None, InfiniteNTK(lambda stax: stax.serial(stax.Dense(8), stax.Relu(), stax.Dense(1))))
    GridSearchCV(KernelRidge(kernel=kernel + RBF()), {"alpha": [1e-3, 0.1]}, cv=KFold(2)).fit(X, y)
    assert len(calls) == 5 == len(set(map(str, calls))) + 2


def test_what_is_kept_stays_within_memory_and_few(calls):
    # a matrix of 20 rows takes 3,200 bytes
    kernel = NTKKernel(MODEL, memory=7000)
    for rows in (X[:20], X[5:25], X[10:]):
        kernel(rows), kernel(rows)
    assert len(calls) == 3 and len(ntk_kernel._KEPT) == 2
    KERNEL(X[5:25]), KERNEL(X[10:])
    assert len(calls) == 3
    for i in range(30):
        KERNEL(X[i : i + 1]), KERNEL(X[i : i + 1], X), KERNEL.diag(X[i : i + 1])
        NTKKernel(MODEL, "pseudo")(X[i : i + 1], X)
    assert len(ntk_kernel._KEPT) == MOST
    # of all models together
    NTKKernel(Model(NETWORK, NETWORK.init(jax.random.key(2), (4,))), memory=7000)(X[:20])
    assert 1 <= len(ntk_kernel._KEPT) < MOST


def test_parameters_in_numpy_that_change_in_place_give_the_new_matrix():
    variables = jax.tree.map(np.array, MODEL.variables)
    model = Model(NETWORK, variables)
    before = NTKKernel(model)(X)
    for leaf in jax.tree.leaves(variables):
        leaf *= 0.5
    np.testing.assert_allclose(NTKKernel(model)(X), gram("trace", model, X, dtype="float64"), rtol=1e-6)
    assert not np.allclose(NTKKernel(model)(X), before)


def test_threads_share_what_is_kept():
    rows = [X[i : i + 5] for i in range(20)]
    kernel = NTKKernel(MODEL, memory=1800)
    expected = [kernel(of) for of in rows]
    ntk_kernel._KEPT.clear()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(kernel, rows * 3))
    for one, other in zip(found, expected * 3, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_matrix_is_kept_for_its_model_kernel_and_inputs_alone(calls):
    other = Model(NETWORK, NETWORK.init(jax.random.key(1), (4,)))
    for kernel in (KERNEL, clone(KERNEL), NTKKernel(MODEL, scale=7.0)):
        kernel(X)
    assert len(calls) == 1
    assert not np.allclose(NTKKernel(other)(X), NTKKernel(MODEL)(X))
    NTKKernel(MODEL, "pseudo")(X)
    KERNEL(X + 1)
    assert len(calls) == 4
    for _ in range(2):
        # the matrix takes 7,200 bytes
        NTKKernel(MODEL, memory=7000)(X[::-1])
    assert len(calls) == 6
    n_kept = len(ntk_kernel._KEPT)
    del other
    assert len(ntk_kernel._KEPT) == n_kept - 1


MACHINES = {
    "SVC": SVC(kernel=KERNEL),
    "two classes": SVC(kernel=KERNEL),
    "SVR": SVR(kernel=KERNEL),
    "KernelRidge": KernelRidge(kernel=KERNEL, alpha=0.1),
    "KernelPCA": KernelPCA(2, kernel=KERNEL),
    "sum": SVC(kernel=KERNEL + RBF(2.0)),
    "product": KernelRidge(kernel=2.0 * KERNEL * RBF(3.0) + WhiteKernel(0.1), alpha=0.1),
    "power": SVC(kernel=KERNEL**2),
    "sum of sums": KernelPCA(2, kernel=RBF() + (KERNEL + NTKKernel(MODEL, "pseudo")) * 0.5),
    "Nystroem": Nystroem(KERNEL * RBF(2.0), n_components=9, random_state=0),
    "none of ours": SVR(kernel=RBF(2.0)),
    "process": GaussianProcessRegressor(KERNEL * ConstantKernel(2.0) + RBF() + WhiteKernel(0.1), optimizer=None),
    "process of classes": GaussianProcessClassifier(KERNEL * RBF(3.0), optimizer=None),
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_machine_on_it_is_the_same_function_in_jax(name):
    machine = clone(MACHINES[name]).fit(X, y % 2 if name == "two classes" else y)
    model = as_model(machine)
    found = np.asarray(jax.jit(lambda model, x: model(x))(model, X.astype(np.float32)))
    if name == "two classes":
        found = found[:, 1] - found[:, 0]
    elif name == "process of classes":
        found = np.exp(found)
    names = ("decision_function", "predict_proba", "predict", "transform")
    expected = next(getattr(machine, of)(X) for of in names if hasattr(machine, of))
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=2e-3, atol=2e-3)


def test_a_pipeline_on_it_is_attacked_by_its_gradient():
    pipeline = make_pipeline(MinMaxScaler(), SVC(kernel=NTKKernel(MODEL))).fit(X, y)
    found = perturb(pipeline, X, y, PGD(0.3, n_steps=3, bounds=None))
    true = np.arange(len(y)), y
    lower = pipeline.decision_function(found)[true] < pipeline.decision_function(X)[true]
    assert lower.mean() > 0.9


def test_machines_on_compound_kernels_are_attacked_and_remember_training_rows():
    for kernel in (KERNEL + RBF(2.0), KERNEL * RBF(2.0), KERNEL**2):
        machine = SVC(kernel=kernel).fit(X, y)
        found = perturb(machine, X, y, PGD(0.3, n_steps=3, bounds=None))
        true = np.arange(len(y)), y
        assert (machine.decision_function(found)[true] < machine.decision_function(X)[true]).mean() > 0.9
        k, x, z = covariance(kernel), jax.numpy.asarray(X[:3], "float32"), jax.numpy.asarray(X, "float32")
        sides = z, remembered(kernel, X)
        np.testing.assert_allclose(k(x, sides[1]), k(x, z), rtol=0, atol=1e-5)
        plain, fewer = (jax.jit(k).lower(x, of).compile().cost_analysis()["flops"] for of in sides)
        assert fewer < plain


def test_a_compound_kernel_without_a_form_in_jax_says_what_to_do():
    machine = SVR(kernel=KERNEL + PairwiseKernel(metric="laplacian")).fit(X, y)
    with pytest.raises(TypeError, match=r"SVR: the kernel PairwiseKernel.* give as_model\(..., kernel=k\)"):
        as_model(machine)


def test_rows_are_images_of_the_shape_that_is_said():
    network = MLP(n_outputs=2, widths=(3,))
    model = Model(network, network.init(jax.random.key(0), (4, 4, 1)))
    images = rng.uniform(size=(6, 4, 4, 1))
    rows, kernel = images.reshape(6, 16), NTKKernel(model, input_shape=(4, 4, 1))
    np.testing.assert_array_equal(kernel(rows), NTKKernel(model)(images))
    machine = SVC(kernel=kernel).fit(rows, [0, 1] * 3)
    np.testing.assert_allclose(
        as_model(machine)(rows)[:, 1], machine.decision_function(rows), rtol=1e-3, atol=1e-4
    )


def test_its_scale_is_searched_for_by_cross_validation():
    search = GridSearchCV(SVC(kernel=KERNEL), {"kernel__scale": [1e-6, 1.0]}, cv=2).fit(X, y)
    assert search.best_params_ == {"kernel__scale": 1.0}


@pytest.mark.parametrize(
    "kernel, inputs, error, said",
    [
        (NTKKernel(), X, TypeError, "model must be a ntkrobust_sk.Model, got None"),
        (NTKKernel(NETWORK), X, TypeError, "it is a network without variables"),
        (NTKKernel(MODEL, "class"), X, ValueError, "one number for each pair of inputs, as 'trace'.*ClassNTK"),
        (NTKKernel(MODEL, "full"), X, ValueError, "one number for each pair"),
        (NTKKernel(MODEL, lambda model, x, z: np.ones((len(x), len(z), 2))), X, ValueError, "one number for each"),
        (NTKKernel(MODEL, "trase"), X, ValueError, "unknown kernel 'trase'"),
        (NTKKernel(MODEL, scale=0), X, ValueError, "scale must be a finite number > 0, got 0"),
        (NTKKernel(MODEL, scale=float("nan")), X, ValueError, "scale must be a finite number"),
        (NTKKernel(MODEL, scale_bounds=(3, 2)), X, ValueError, r"0 < low <= high, got \(3, 2\)"),
        (NTKKernel(MODEL, scale_bounds=(1,)), X, ValueError, r"scale_bounds must be 'fixed' or two numbers"),
        (NTKKernel(MODEL, input_shape=(3, 3)), X, ValueError, "input_shape=.3, 3., which stands for 9 features"),
        (NTKKernel(MODEL, input_shape="ab"), X, (TypeError, ValueError), "input_shape"),
        (NTKKernel(MODEL, memory="2 apples"), X, ValueError, "memory"),
        (KERNEL, X[0], ValueError, r"X must hold inputs of shape \(n, ...\) with n >= 1, got shape \(4,\)"),
        (KERNEL, X[:0], ValueError, "with n >= 1"),
        (KERNEL, X * np.nan, ValueError, "X must"),
        (KERNEL, X[:, :2], ValueError, "the network cannot take inputs of shape .n, 2."),
    ],
)
@pytest.mark.parametrize("way", ["__call__", "diag"])
def test_what_does_not_fit_is_said_when_it_is_called(kernel, inputs, error, said, way):
    with pytest.raises(error, match=said):
        getattr(kernel, way)(inputs)


@pytest.mark.parametrize(
    "bounds",
    ["free", (1,), (2, 1), (0, 1), (1e-3, float("inf")), (1, float("nan")), None, ("a", "b"), 3, [[1, 2]], {}, 1j],
    ids=str,
)
def test_bounds_of_the_scale_are_two_numbers_or_fixed(bounds):
    with pytest.raises((TypeError, ValueError), match="scale_bounds must be 'fixed' or two numbers, 0 < low"):
        GaussianProcessRegressor(NTKKernel(MODEL, scale_bounds=bounds)).fit(X, y)


@pytest.mark.parametrize(
    "scale", ["a", None, [1], np.ones(2), np.float32(2), 10**400, 1j], ids=lambda of: str(of)[:9]
)
def test_it_prints_whatever_its_scale_is(scale):
    assert repr(NTKKernel(MODEL, scale=scale)).startswith("NTKKernel(Model(")


@pytest.mark.parametrize("name", ["model__x", "scale__x", "kernel__x", "params__x", "Model"])
def test_what_is_no_parameter_is_said_and_nothing_is_set(name):
    kernel = NTKKernel(MODEL)
    with pytest.raises(ValueError, match=f"'{name}' is no parameter of NTKKernel"):
        kernel.set_params(**{"scale": 2.0, name: 3.0})
    assert kernel.scale == 1
    with pytest.raises(ValueError, match=f"'{name}' is no parameter of NTKKernel"):
        (kernel + RBF()).set_params(**{f"k1__{name}": 3.0})
    assert kernel.set_params(scale=2.0, memory="1GiB") is kernel and kernel.scale == 2


def test_features_of_training_rows_are_computed_once_and_give_the_same_scores_and_gradients():
    machine = SVC(kernel=KERNEL).fit(X, y)
    kept = KERNEL.remembered(X)
    k = KERNEL.as_function()
    x = jax.numpy.asarray(X[:3] + 0.1, "float32")
    z = jax.numpy.asarray(X, "float32")
    np.testing.assert_allclose(k(x, kept), k(x, z), rtol=0, atol=1e-6)  # of entries up to 4
    found, expected = (jax.grad(lambda x, side=side: (k(x, side) ** 2).sum())(x) for side in (kept, z))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    operations = [jax.jit(k).lower(x, side).compile().cost_analysis()["flops"] for side in (kept, z)]
    assert operations[0] < operations[1]
    assert as_model(machine)(x).shape == (3, 3)


def test_rows_whose_features_do_not_fit_in_memory_are_kept_as_they_are():
    assert NTKKernel(MODEL, memory=1000).remembered(X) is X
