"""How sure kernel machines are: against scikit-learn's Gaussian process, draws of the prior, and under attack."""

import tracemalloc

import jax
import numpy as np
import pytest
from quick import answers
from sklearn.exceptions import NotFittedError
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Kernel

from ntkrobust_sk import (
    MLP,
    PGD,
    EmpiricalNTKClassifier,
    EmpiricalNTKRegressor,
    EmpiricalNTKRegressorCV,
    Model,
    SingularGramError,
    gram,
    load,
    perturb,
)
from ntkrobust_sk.kernels.posterior import make_posterior
from ntkrobust_sk.solvers import ConjugateGradient, EigenPro, Nystrom

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(40, 3)).astype(np.float32)
Z = RANDOM.normal(size=(12, 3)).astype(np.float32)
TARGETS = np.c_[X[:, 0] * X[:, 1], 30 * np.sin(X[:, 2])]
WEIGHT = RANDOM.integers(0, 3, size=40) * 1.0
NETWORK = MLP(2, widths=(6,))
MODEL = Model(NETWORK, NETWORK.init(jax.random.key(0), (3,)))


def regressor(**settings):
    return EmpiricalNTKRegressor(MODEL, **{"alpha": 0.05} | settings)


class Tangent(Kernel):
    """The trace kernel as scikit-learn's Gaussian process takes one."""

    def __init__(self):
        """Without parameters."""

    def __call__(self, A, B=None, eval_gradient=False):
        return gram("trace", MODEL, A.astype(np.float32), None if B is None else B.astype(np.float32)).astype(
            float
        )

    def diag(self, A):
        return np.diag(self(A))

    def is_stationary(self):
        return False


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])
def test_deviations_are_those_of_scikit_learns_gaussian_process(weight):
    machine = regressor().fit(X, TARGETS[:, 1], weight)
    mean, std = machine.predict(Z, return_std=True)
    seen = slice(None) if weight is None else weight > 0
    noise = machine.ridge_ / (1 if weight is None else weight[seen])
    scale = machine.prior_variance_[0]
    process = GaussianProcessRegressor(
        ConstantKernel(scale, "fixed") * Tangent(), alpha=scale * noise, optimizer=None
    ).fit(X[seen], TARGETS[seen, 1] - machine.intercept_[0])
    expected, deviations = process.predict(Z, return_std=True)
    np.testing.assert_allclose(mean - machine.intercept_[0], expected, atol=1e-3)
    np.testing.assert_allclose(std, deviations, rtol=2e-3)
    np.testing.assert_array_equal(mean, machine.predict(Z))


def test_the_scale_of_the_prior_is_the_maximum_of_the_marginal_likelihood():
    machine = regressor().fit(X, TARGETS)
    K = machine.gram(X).astype(float) + machine.ridge_ * np.eye(40)
    for t, scale in enumerate(machine.prior_variance_):
        y = TARGETS[:, t] - machine.intercept_[t]

        def likelihood(s, y=y):
            return -0.5 * y @ np.linalg.solve(s * K, y) - 0.5 * np.linalg.slogdet(s * K)[1]

        assert likelihood(scale) > max(likelihood(scale * 1.1), likelihood(scale / 1.1))
    np.testing.assert_allclose(machine.noise_std_, np.sqrt(machine.prior_variance_ * machine.ridge_))


@pytest.mark.parametrize("solver", ["cholesky", Nystrom(n_landmarks=15)], ids=["exact", "landmarks"])
def test_intervals_cover_what_is_drawn_from_the_prior(solver):
    """The function at 300 new inputs of 10 draws, and observations of it, within 1.96 standard deviations."""
    alpha, n, random = 0.01, 60, np.random.default_rng(1)
    inputs = random.normal(size=(n + 300, 3)).astype(np.float32)
    K = gram("trace", MODEL, inputs).astype(float)
    ridge = alpha * np.trace(K[:n, :n]) / n
    eigenvalues, vectors = np.linalg.eigh(4 * K)
    functions = (vectors * np.sqrt(eigenvalues.clip(0))) @ random.normal(size=(len(K), 10))
    seen = functions + np.sqrt(4 * ridge) * random.normal(size=functions.shape)
    machine = regressor(alpha=alpha, solver=solver).fit(inputs[:n], seen[:n])
    mean, std = machine.predict(inputs[n:], return_std=True)
    assert 0.9 <= (abs(functions[n:] - mean) <= 1.96 * std).mean() <= 0.99
    assert 0.9 <= (abs(seen[n:] - mean) <= 1.96 * np.hypot(std, machine.noise_std_)).mean() <= 0.99
    np.testing.assert_allclose(machine.prior_variance_.mean(), 4, rtol=0.25)


UNCONVERGED = pytest.mark.filterwarnings("ignore:.*has not converged")
APPROXIMATE = {
    "landmarks": Nystrom(n_landmarks=8),
    "unconverged": EigenPro(max_epochs=1, n_eigenvectors=2),
    "few iterations": ConjugateGradient(max_iter=1, rank=0),
    "own": lambda A, B: 0.5 * np.linalg.solve(A, B),
}


@UNCONVERGED
@pytest.mark.parametrize(
    "kernel, weight", [("trace", None), ("trace", WEIGHT), ("class", WEIGHT), ("full", WEIGHT)]
)
@pytest.mark.parametrize("solver", APPROXIMATE)
def test_deviations_of_an_approximation_are_those_from_what_it_predicts(solver, kernel, weight, tmp_path):
    if solver == "unconverged" and kernel != "trace":
        kernel = "pseudo"
    rows, targets = np.r_[X, X[:9]], np.r_[TARGETS, TARGETS[9:18]]
    weight = None if weight is None else np.r_[weight, weight[:9] + 1]
    exact = regressor(kernel=kernel).fit(rows, targets, weight)
    machine = regressor(kernel=kernel, solver=APPROXIMATE[solver]).fit(rows, targets, weight)
    if solver != "own":
        machine.save(tmp_path / "machine.ntk")
    np.testing.assert_allclose(machine.prior_variance_, exact.prior_variance_, rtol=1e-3)
    (mean, std), (own_mean, own_std) = exact.predict(Z, return_std=True), machine.predict(Z, return_std=True)
    assert abs(mean - own_mean).max() > 1e-2 * abs(mean).max()
    np.testing.assert_allclose(own_std, np.hypot(std, mean - own_mean), rtol=5e-3)
    np.testing.assert_allclose(answers(machine.std_model(), Z), own_std, rtol=5e-3)
    if solver != "own":
        again = load(tmp_path / "machine.ntk")
        np.testing.assert_array_equal(again.predict(Z, return_std=True)[1], own_std)


@UNCONVERGED
def test_a_prior_that_an_approximation_has_not_found_is_refused_where_it_cannot_be():
    K = regressor().fit(X, TARGETS).gram(X)
    for exact in ("cholesky", "eigh", "cg"):
        found = EmpiricalNTKRegressor(kernel="precomputed", solver=exact).fit(K, TARGETS).noise_std_
        assert (found > 0).all()
    with pytest.raises(ValueError, match="fit with solver='cholesky'"):
        _ = EmpiricalNTKRegressor(kernel="precomputed", solver=Nystrom(n_landmarks=4)).fit(K, TARGETS).noise_std_
    assert not hasattr(regressor(solver="sgd", max_epochs=0).fit(X, TARGETS), "prior_variance_")
    machine = regressor(solver=lambda A, B: 0 * B, alpha=0.0).fit(np.r_[X[:9], X[:9]], TARGETS[:18])
    with pytest.raises(SingularGramError, match=r"alpha > 0|larger alpha"):
        _ = machine.prior_variance_


def test_the_prior_of_a_stopped_flow_is_that_of_the_ridge_beside_it():
    flow = EmpiricalNTKRegressorCV(MODEL, stopping_times=[30.0]).fit(X, TARGETS)
    K = flow.gram(X).astype(float)
    alpha = flow.ridge_ / np.mean(np.diag(K))
    assert alpha == pytest.approx(1 / 30, rel=1e-3)
    np.testing.assert_allclose(
        flow.prior_variance_, regressor(alpha=alpha).fit(X, TARGETS).prior_variance_, rtol=1e-3
    )


@pytest.mark.parametrize("kernel", ["trace", "full"])
def test_what_attacks_see_is_what_is_predicted(kernel):
    machine = regressor(kernel=kernel).fit(X, TARGETS)
    _, std = machine.predict(Z, return_std=True)
    np.testing.assert_allclose(answers(machine.std_model(), Z), std, rtol=2e-3)
    score, detector = machine.ood_score(Z), machine.ood_model(level=0.9)
    assert score.shape == (12,) and (score >= 0).all() and (score <= 1).all()
    scores = answers(detector, Z)
    threshold = np.quantile(machine._posterior().left_out, 0.9, method="inverted_cdf")
    np.testing.assert_allclose(scores[:, 0], 0)
    expected = np.log(score / (1 - score)) - np.log(threshold / (1 - threshold))
    np.testing.assert_allclose(scores[:, 1], expected, atol=5e-3)


@pytest.mark.parametrize("kernel, weight", [("trace", None), ("class", WEIGHT), ("full", WEIGHT)])
def test_scores_of_training_rows_that_are_left_out_are_those_of_refits(kernel, weight):
    machine = regressor(kernel=kernel).fit(X, TARGETS, weight)
    found = machine._posterior().left_out
    seen = np.arange(40) if weight is None else np.flatnonzero(weight)
    for at in (0, len(seen) - 1):
        rest = np.delete(np.arange(40), seen[at])
        of_rest = np.ones(39) if weight is None else weight[rest]
        K = machine.gram(X)
        diagonal = np.einsum("iicc->ic", K).mean(1) if K.ndim == 4 else np.diagonal(K).reshape(-1, 40).mean(0)
        alpha = machine.ridge_ / np.average(diagonal[rest], weights=of_rest)
        refit = regressor(kernel=kernel, alpha=alpha).fit(X[rest], TARGETS[rest], of_rest)
        assert found[at] == pytest.approx(refit.ood_score(X[seen[at]][None])[0], rel=1e-3)


@pytest.mark.parametrize("kernel", ["trace", "class", "full"])
@pytest.mark.parametrize("solver", ["cholesky", Nystrom(n_landmarks=5)], ids=["exact", "landmarks"])
def test_a_row_of_weight_two_is_unlike_training_as_a_row_that_is_written_twice(kernel, solver):
    labels, repeats = (X[:, 0] > 0).astype(int), WEIGHT.astype(int)
    twice = np.repeat(X, repeats, axis=0)[::-1], np.repeat(labels, repeats)[::-1]
    fits = [(X, labels, WEIGHT), (X, labels, 0.3 * WEIGHT), (*twice, None), (*twice, np.full(repeats.sum(), 0.1))]
    found = []
    for rows, y, weight in fits:
        # one ridge for a row of weight one, whatever the unit of weights is
        alpha = 0.05 * (1.0 if weight is None else weight.mean() / WEIGHT.mean() if len(y) == 40 else 0.1)
        machine = EmpiricalNTKClassifier(MODEL, kernel=kernel, alpha=alpha, solver=solver).fit(rows, y, weight)
        found.append((machine.ood_score(Z), answers(machine.ood_model(level=0.9), Z)[:, 1]))
    for scores, unlike in found[1:]:
        np.testing.assert_allclose(scores, found[0][0], rtol=1e-3)
        np.testing.assert_allclose(unlike, found[0][1], atol=1e-2)


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_a_stated_share_of_the_training_rows_is_like_the_others(copies):
    rows = np.repeat(X, copies, axis=0)
    machine = EmpiricalNTKClassifier(MODEL, alpha=0.05).fit(rows, (rows[:, 0] > 0).astype(int))
    posterior = machine._posterior()
    assert len(posterior.left_out) == len(X)
    for level in (0.1, 0.5, 0.95):
        share = np.average(posterior.left_out <= posterior.threshold(level), weights=posterior.root**2)
        assert level - 1e-9 <= share <= level + 1 / len(X)


@pytest.mark.slow
def test_what_is_far_from_training_is_told_apart_and_attacks_move_it_both_ways():
    near = RANDOM.normal(size=(200, 3)).astype(np.float32) * 0.2 + [2.0, 0, 0]
    near, far = near.astype(np.float32), (RANDOM.normal(size=(20, 3)) * 0.2 - [2.0, 0, 0]).astype(np.float32)
    labels = (near[:, 1] > 0).astype(int)
    machine = EmpiricalNTKClassifier(MODEL, alpha=1e-3).fit(near[:180], labels[:180])
    assert machine.ood_score(far).min() > machine.ood_score(near[180:]).max()
    detector = machine.ood_model()
    assert (answers(detector, far).argmax(1) == 1).all()
    assert (answers(detector, near[180:]).argmax(1) == 0).mean() > 0.7
    attack = PGD(0.5, n_steps=10, bounds=None)
    raised = perturb(detector, near[180:], np.zeros(20, int), attack)
    hidden = perturb(detector, far, np.ones(20, int), attack)
    assert (machine.ood_score(raised) > 2 * machine.ood_score(near[180:])).mean() > 0.9
    assert (machine.ood_score(hidden) < machine.ood_score(far)).mean() > 0.9


def test_an_attack_makes_a_machine_less_sure():
    machine = EmpiricalNTKClassifier(MODEL, calibrate=True).fit(X, (X[:, 0] > 0).astype(int))
    labels = machine.predict(Z)
    attacked = perturb(machine.calibrated_model(), Z, labels, PGD(0.1, n_steps=5, bounds=None))
    rows = np.arange(len(Z))
    before, after = (machine.predict_proba(x)[rows, labels] for x in (Z, attacked))
    assert (after < before).mean() > 0.8
    logits = answers(machine.calibrated_model(), Z)
    expected = machine.predict_proba(Z)
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), expected, atol=1e-4)
    unsure = regressor().fit(X, TARGETS)
    moved = PGD(0.1, n_steps=5, bounds=None)(
        unsure.std_model(), Z, np.zeros((12, 2), np.float32), key=jax.random.key(0)
    )
    assert (
        unsure.predict(np.asarray(moved), return_std=True)[1] > unsure.predict(Z, return_std=True)[1]
    ).mean() > 0.9


def test_a_posterior_belongs_to_its_fit_and_is_made_again_after_loading(tmp_path):
    machine = regressor(cache=tmp_path / "cache").fit(X, TARGETS)
    first = machine.predict(Z, return_std=True)[1]
    assert machine._posterior() is machine._posterior()
    machine.save(tmp_path / "model.ntk")
    np.testing.assert_allclose(load(tmp_path / "model.ntk").predict(Z, return_std=True)[1], first, rtol=1e-4)
    second = machine.set_params(alpha=1.0).fit(X, TARGETS).predict(Z, return_std=True)[1]
    assert abs(second / first - 1).max() > 0.05


def test_bad_input_is_refused():
    machine = regressor().fit(X, TARGETS)
    for wrong in ("yes", 1, None):
        with pytest.raises(ValueError, match="return_std must be True or False"):
            machine.predict(Z, return_std=wrong)
    for wrong in (0, 1, 1.5, "x"):
        with pytest.raises(ValueError, match="level must be"):
            machine.ood_model(level=wrong)
    with pytest.raises(ValueError, match="3 features"):
        machine.ood_score(Z[:, :2])
    for call in ("ood_score", "ood_model", "std_model"):
        with pytest.raises(NotFittedError):
            getattr(regressor(), call)(*([Z] if call == "ood_score" else []))
    descended = regressor(solver="sgd", max_epochs=0).fit(X, TARGETS)
    for call in (
        lambda: descended.predict(Z, return_std=True),
        lambda: descended.ood_score(Z),
        descended.ood_model,
    ):
        with pytest.raises(ValueError, match="fitted in closed form"):
            call()
    flat = regressor(solver=lambda A, B: np.zeros_like(B), alpha=0.0).fit(np.r_[X, X], np.r_[TARGETS, TARGETS])
    with pytest.raises(SingularGramError, match="larger alpha"):
        flat.ood_score(Z)


@pytest.mark.parametrize(
    "kernel, solver", [("trace", "cg"), ("trace", "nystrom"), ("class", "cg"), ("full", "cg")]
)
def test_variances_keep_to_the_memory_of_an_iterative_solver(kernel, solver):
    rows = np.random.default_rng(2).normal(size=(200, 3)).astype(np.float32)
    targets = rows[:, :2]
    machine = regressor(kernel=kernel, solver=solver, memory="300KB", alpha=0.5).fit(rows, targets)
    asked = (lambda: machine.predict(Z, return_std=True), lambda: machine.ood_score(Z), machine.ood_model)
    for ask in (*asked, machine.std_model):
        with pytest.raises(MemoryError, match=r"200 training rows .* more than memory='300KB'"):
            ask()
    machine.set_params(memory="30MB")
    exact = regressor(kernel=kernel, alpha=0.5, memory="300KB").fit(rows, targets)
    np.testing.assert_allclose(machine.ood_score(Z), exact.ood_score(Z), rtol=1e-3)


def test_variances_need_room_in_the_machine_which_is_said_before(monkeypatch):
    machine = regressor().fit(X, TARGETS)
    monkeypatch.setattr("ntkrobust_sk.estimators.uncertainty.host_bytes_free", lambda: 1000)
    with pytest.raises(MemoryError, match="40 training rows"):
        machine.ood_score(Z)


@pytest.mark.parametrize("shape", [(300, 300), (100, 100, 3), (100, 100, 3, 3)])
def test_a_posterior_takes_no_memory_but_its_factors(shape):
    n = shape[0]
    half = np.random.default_rng(3).normal(size=(n, n)).astype(np.float32)
    K = half @ half.T / n
    if len(shape) > 2:
        K = np.stack([K, 2 * K, 3 * K], axis=2)
    if len(shape) > 3:
        K = K[:, :, :, None] * np.eye(3, dtype=np.float32)
    tracemalloc.start()
    made = make_posterior(K, 0.5, np.ones(n), np.arange(n))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.7 * made.factor.nbytes + 1e5
    for i, factor in enumerate(made.factor):
        A = K[:, :, i] if K.ndim == 3 else np.moveaxis(K, 1, -2).reshape(factor.shape)
        np.testing.assert_allclose(factor @ factor.T, A + 0.5 * np.eye(len(A)), atol=1e-5)
        assert not np.triu(factor, 1).any()


def test_constant_targets_leave_no_doubt():
    machine = EmpiricalNTKRegressorCV(MODEL, alphas=[0.1]).fit(X, np.full(40, 3.0))
    mean, std = machine.predict(Z, return_std=True)
    np.testing.assert_allclose(mean, 3.0)
    np.testing.assert_allclose(std, 0.0)


@pytest.mark.parametrize(
    "rows, y, weight",
    [
        (X[:1], [3.0], None),
        (X, np.full(40, 0.1), None),
        (X, TARGETS[:, 0], np.arange(40.0) == 7),
        (X, np.c_[TARGETS[:, 0], np.full(40, 0.1)], None),
    ],
    ids=["one row", "constant", "one weight", "one constant column"],
)
def test_deviations_of_zero_for_targets_that_do_not_differ_warn(rows, y, weight):
    machine = regressor().fit(rows, y, weight)
    with pytest.warns(UserWarning, match="not certainty; fit on rows with different targets") as caught:
        _, std = machine.predict(Z, return_std=True)
    varied = np.ptp(np.reshape(y, (len(rows), -1))[slice(None) if weight is None else weight], axis=0) > 0
    np.testing.assert_array_equal(machine.prior_variance_ > 0, varied)
    np.testing.assert_array_equal(std.reshape(len(Z), -1).any(axis=0), varied)
    assert ("the targets" if not varied.any() else "column 1") in str(caught[0].message)
    for ask in (machine.std_model, lambda: machine.noise_std_):
        with pytest.warns(UserWarning, match="not certainty"):
            ask()
