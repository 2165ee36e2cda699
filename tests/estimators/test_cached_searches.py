"""Searches with a cache: a Gram matrix is computed once for each data set, whatever alphas are tried."""

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV

from ntkrobust_sk import (
    MLP,
    PGD,
    AdversarialKernelTrainer,
    EmpiricalNTKClassifier,
    EmpiricalNTKRegressor,
    RobustFeatureSelector,
    load,
)

X, Y = load_iris(return_X_y=True)
X, Y = X[::2] / 8, Y[::2]
NETWORK = MLP(widths=(6,))
ALPHAS = [1e-3, 1e-2, 1e-1]


@pytest.fixture
def tiles(monkeypatch):
    """The tiles that this process has computed."""
    from ntkrobust_sk.kernels import workers

    computed, compute = [], workers.compute_tiles

    def counting(job, tiles):
        computed.extend(tiles)
        return compute(job, tiles)

    monkeypatch.setattr(workers, "compute_tiles", counting)
    return computed


def searched(alphas, cache, estimator=NETWORK, n_jobs=None, **settings):
    machine = EmpiricalNTKClassifier(estimator, cache=cache, **{"random_state": 0} | settings)
    return GridSearchCV(machine, {"alpha": alphas}, cv=3, n_jobs=n_jobs).fit(X, Y)


def test_a_search_over_alphas_computes_the_tiles_of_one_alpha(tmp_path, tiles):
    searched(ALPHAS[:1], tmp_path / "one")
    of_one = len(tiles)
    tiles.clear()
    found = searched(ALPHAS, tmp_path / "all")
    assert len(tiles) == of_one > 0
    tiles.clear()
    again = searched(ALPHAS, str(tmp_path / "all"))
    assert tiles == []
    plain = searched(ALPHAS, None)
    for search in (again, plain):
        np.testing.assert_array_equal(search.cv_results_["mean_test_score"], found.cv_results_["mean_test_score"])
    scores = found.best_estimator_.decision_function(X)
    np.testing.assert_allclose(scores, plain.best_estimator_.decision_function(X), atol=1e-4)
    # the model that attacks see answers the same
    np.testing.assert_allclose(found.best_estimator_.as_model()(X.astype("float32")), scores, atol=1e-4)


def test_other_parameters_and_data_have_matrices_of_their_own(tmp_path, tiles):
    def fit(y=Y, x=X, **settings):
        tiles.clear()
        EmpiricalNTKClassifier(
            **{"estimator": NETWORK, "random_state": 0, "cache": joblib.Memory(tmp_path)} | settings
        ).fit(x, y)
        return len(tiles) > 0

    assert fit() and not fit() and not fit(alpha=1.0) and not fit(y=Y[::-1]) and not fit(solver="eigh")
    changed = X.copy()
    changed[3, 2] += 1e-6
    assert fit(kernel="pseudo") and fit(random_state=1) and fit(x=changed) and fit(estimator=MLP(widths=(7,)))
    assert fit(precision="bf16") and fit(random_state=None) and not fit()


@pytest.mark.slow
def test_workers_share_the_cache_of_a_search(tmp_path, tiles):
    searched(ALPHAS, tmp_path, n_jobs=2)
    tiles.clear()  # the refit is this process's
    found = searched(ALPHAS, tmp_path)
    assert tiles == []
    assert sorted(path.name[:5] for path in tmp_path.iterdir()) == ["gram-"] * 7
    assert found.best_score_ == searched(ALPHAS, None).best_score_


def test_a_trainer_inside_is_fitted_once_for_each_fold(tmp_path, monkeypatch):
    fits, fit = [], AdversarialKernelTrainer.fit
    monkeypatch.setattr(
        AdversarialKernelTrainer, "fit", lambda self, *a, **k: fits.append(len(a[0])) or fit(self, *a, **k)
    )
    trainer = AdversarialKernelTrainer(NETWORK, max_epochs=1, random_state=0)
    found = searched(ALPHAS, tmp_path, trainer)
    assert fits == [50, 50, 50, 75]
    again = searched(ALPHAS, tmp_path, trainer)
    assert len(fits) == 4
    np.testing.assert_array_equal(again.predict(X), found.predict(X))
    # without a seed each fit is another one
    searched(ALPHAS[:2], tmp_path, AdversarialKernelTrainer(NETWORK, max_epochs=0))
    assert len(fits) == 4 + 7


def test_a_source_that_files_cannot_hold_is_fitted_each_time_with_a_warning(tmp_path):
    class Own(AdversarialKernelTrainer):
        """Of a class that is not registered."""

    machine = EmpiricalNTKClassifier(Own(NETWORK, max_epochs=0, random_state=0), cache=tmp_path, random_state=0)
    with pytest.warns(UserWarning, match="Own is fitted again in each fit.*saved_as"):
        machine.fit(X, Y)


def test_what_is_saved_has_no_cache_and_answers_the_same(tmp_path):
    machine = EmpiricalNTKRegressor(NETWORK, cache=tmp_path / "cache", random_state=0).fit(X, X[:, 0])
    assert "predictor_" not in vars(machine)
    machine.save(tmp_path / "model.ntk")
    loaded = load(tmp_path / "model.ntk")
    assert loaded.cache is None
    np.testing.assert_array_equal(loaded.predict(X), machine.predict(X))
    np.testing.assert_array_equal(loaded.predict(X[:5]), machine.predict(X[:5]))


def test_a_selector_takes_its_kernel_from_the_cache(tmp_path, tiles):
    settings = {
        "kernel": "pseudo",
        "n_candidates": 3,
        "n_features": 2,
        "criterion": "eigenvalue",
        "random_state": 0,
    }
    plain = RobustFeatureSelector(NETWORK, **settings).fit_transform(X, Y)
    for _ in range(2):
        tiles.clear()
        found = RobustFeatureSelector(NETWORK, cache=tmp_path, **settings).fit_transform(X, Y)
        np.testing.assert_allclose(abs(found), abs(plain), atol=1e-3)
    assert tiles == []


def test_a_cache_that_is_no_folder_is_refused_before_anything_is_computed(tmp_path, tiles):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="cache must be the path of a folder"):
        EmpiricalNTKClassifier(NETWORK, cache=tmp_path / "file").fit(X, Y)
    with pytest.raises(TypeError, match=r"cache must be None, the path of a folder or .*, got 3"):
        EmpiricalNTKClassifier(NETWORK, cache=3).fit(X, Y)
    assert tiles == []


def test_attacks_see_a_machine_from_the_cache_as_any_other(tmp_path):
    attack = PGD(0.02, n_steps=2)
    machines = [EmpiricalNTKClassifier(NETWORK, cache=c, random_state=0).fit(X, Y) for c in (None, tmp_path)]
    attacked = [machine.perturb(X[:4], Y[:4], attack) for machine in machines]
    np.testing.assert_allclose(*attacked, atol=1e-6)
