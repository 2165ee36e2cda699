"""A table of what users expect: each row a short script on real data, from fitting to explaining.

Nothing here looks inside: only public names, in the order in which somebody would write them.
"""

import joblib
import numpy as np
import pandas as pd
import pytest
from real_tables import penguins, titanic
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, make_column_selector, make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, cross_validate, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from ntkrobust_sk import (
    MLP,
    PGD,
    AdversarialKernelTrainer,
    Box,
    EmpiricalNTKClassifier,
    EmpiricalNTKRegressor,
    Square,
    certified_accuracy,
    certify,
    load,
    make_robust_scorer,
    perturb,
    robust_accuracy,
    robustness_report,
    trak_scores,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:attacks leave these columns"),
    pytest.mark.filterwarnings("ignore:there is no differentiable form"),
]


def passengers():
    """Passengers of the Titanic whose age, fare and port are known, in two halves of a sample."""
    X, y = titanic()
    known = X.notna().all(axis=1)
    return train_test_split(X[known], y[known], train_size=200, test_size=60, random_state=0, stratify=y[known])


def prepared():
    """Numbers scaled, text and categories one-hot: as in scikit-learn's own guide to mixed columns."""
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    return ColumnTransformer(
        [
            ("numbers", numbers, make_column_selector(dtype_include="number")),
            ("categories", OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_exclude="number")),
        ]
    )


def test_titanic_a_robust_network_is_searched_for_saved_attacked_certified_and_explained(tmp_path):
    X_train, X_test, y_train, y_test = passengers()
    # an adversary lies about age and fare, a little
    box = Box.from_data(X_train, mask=["age", "fare"])
    trainer = AdversarialKernelTrainer(
        MLP(widths=(16,)), attack=PGD(0.1, 3, bounds=None), max_epochs=5, random_state=0
    )
    pipeline = Pipeline([("columns", prepared()), ("classifier", trainer)])
    scorer = make_robust_scorer(PGD(5.0, 5, bounds=Box.from_data(titanic()[0], mask=["age", "fare"])))
    grid = {"classifier__attack__epsilon": [0.05, 0.2], "classifier__network__widths": [(8,), (16, 16)]}
    search = GridSearchCV(pipeline, grid, scoring={"clean": "accuracy", "robust": scorer}, refit="robust", cv=2)
    search.fit(X_train, y_train)
    table = pd.DataFrame(search.cv_results_)
    assert (table["mean_test_robust"] <= table["mean_test_clean"]).all() and len(table) == 4
    best = search.best_estimator_
    assert best["classifier"].attack.epsilon == search.best_params_["classifier__attack__epsilon"]

    joblib.dump(best, tmp_path / "pipeline.joblib")
    best["classifier"].save(tmp_path / "classifier.ntk")
    again, classifier = joblib.load(tmp_path / "pipeline.joblib"), load(tmp_path / "classifier.ntk")
    assert (again.predict(X_test) == best.predict(X_test)).all()
    assert (classifier.predict(best["columns"].transform(X_test)) == best.predict(X_test)).all()

    lowest, highest = X_train[["age", "fare"]].min(), X_train[["age", "fare"]].max()
    inside = ((X_test[["age", "fare"]] >= lowest) & (X_test[["age", "fare"]] <= highest)).all(axis=1)
    X_test, y_test = X_test[inside], y_test[inside]
    X_adv = perturb(search, X_test, y_test, PGD(5.0, 10, bounds=box))
    assert list(X_adv.columns) == list(X_test.columns) and (X_adv.dtypes == X_test.dtypes).all()
    assert (X_adv["age"] - X_test["age"]).abs().max() <= 5 and X_adv["sex"].equals(X_test["sex"])
    assert best.score(X_adv, y_test) == robust_accuracy(search, X_test, y_test, PGD(5.0, 10, bounds=box))

    certificates = certify(best, X_test[:10], sigma=2.0, n_samples=200)
    assert (certificates.radii >= 0).all() and certificates.radii.max() > 0
    columns, network = best["columns"], best["classifier"].model_
    survived, expected = ((y == "survived").astype(int) for y in (y_train, y_test[:3]))
    scores = trak_scores(network, columns.transform(X_train), survived, columns.transform(X_test[:3]), expected)
    assert scores.shape == (3, len(X_train)) and np.isfinite(scores).all()


def test_titanic_a_kernel_machine_says_on_whom_an_answer_rests():
    X_train, X_test, y_train, y_test = passengers()
    machine = EmpiricalNTKClassifier(MLP(widths=(32,)), alpha=0.1, random_state=0)
    pipeline = make_pipeline(prepared(), machine).fit(X_train, y_train)
    top = pipeline[-1].top_attributions(pipeline[:-1].transform(X_test), k=3)
    # passengers who fared as the answer says
    same = y_train.to_numpy()[top.helpful] == pipeline.predict(X_test)[:, None]
    assert same.mean() > 0.9 and pipeline.score(X_test, y_test) > 0.7


def test_titanic_as_it_is_in_gradient_boosting_with_missing_values_and_native_categories():
    X, y = titanic()
    X = X.astype({"sex": "category"})
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=40, random_state=1, stratify=y)
    model = HistGradientBoostingClassifier(max_iter=10, random_state=0).fit(X_train, y_train)
    numbers = Square(10.0, 50, bounds=Box({"fare": 0}, mask=["fare", "sibsp"], integers=["sibsp"]))
    both = Square(10.0, 50, bounds=Box({"fare": 0}, mask=["fare"], categories=["embarked", "sex"], n_changes=1))
    X_adv = perturb(model, X_test, y_test, both)
    assert (X_adv.dtypes == X_test.dtypes).all() and X_adv["age"].equals(X_test["age"])
    assert set(X_adv["embarked"].dropna()) <= {"C", "Q", "S"}
    found = [robust_accuracy(model, X_test, y_test, attack) for attack in (numbers, both)]
    assert found[1] == model.score(X_adv, y_test) and found[1] < found[0] <= model.score(X_test, y_test)
    scorer = make_robust_scorer(both, metric="balanced_accuracy")
    scores = cross_validate(model, X_test, y_test, cv=2, scoring=scorer, error_score="raise")["test_score"]
    assert ((scores >= 0) & (scores < 0.8)).all()


def test_penguins_a_support_vector_machine_is_reported_on_by_name():
    X, species = penguins()
    known = X.notna().all(axis=1)
    X, species = X[known][::3], species[known][::3]
    columns = make_column_transformer(
        (StandardScaler(), make_column_selector(dtype_include="number")),
        (OneHotEncoder(), ["island", "sex"]),
    )
    model = make_pipeline(columns, SVC()).fit(X, species)
    report = robustness_report(
        model,
        X,
        species,
        [1.0, 6.0],
        bounds=Box.from_data(X, mask=["culmen_length_mm", "culmen_depth_mm"]),
        attacks=PGD(1.0, 10),
    )
    assert report.clean_accuracy >= report.accuracies[0, 0] > report.accuracies[0, 1] > 0
    assert "6" in str(report) and "<table" in report._repr_html_()


def test_breast_cancer_columns_by_name_and_calibrated_probabilities(tmp_path):
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    y = y.map({0: "malignant", 1: "benign"})
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=60, random_state=0)
    model = make_pipeline(MinMaxScaler(), CalibratedClassifierCV(SVC(), cv=2)).fit(X_train, y_train)
    worst = [name for name in X if name.startswith("worst")]
    box = Box.from_data(X, mask=worst)
    attack = PGD(20.0, 10, bounds=box)
    probability = make_robust_scorer(attack, metric="neg_log_loss")
    assert probability(model, X_test, y_test) < -0.05
    X_adv = perturb(model, X_test, y_test, attack)
    rest = X.columns.difference(worst)
    pd.testing.assert_frame_equal(X_adv[rest], X_test[rest])
    assert model.score(X_adv, y_test) < model.score(X_test, y_test)
    forest = RandomForestClassifier(10, random_state=0).fit(X_train, y_train)
    assert robust_accuracy(forest, X_test, y_test, Square(20.0, 50, bounds=box)) < forest.score(X_test, y_test)
    assert 0 < certified_accuracy(model, X_test[:15], y_test[:15], [0.1], sigma=2.0, n_samples=200)[0] <= 1


def test_diabetes_a_regressor_is_searched_for_by_its_error_under_attack(tmp_path):
    X, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    X_train, X_test, y_train, y_test = train_test_split(X, y, train_size=120, test_size=40, random_state=0)
    machine = EmpiricalNTKRegressor(MLP(widths=(32,)), random_state=0)
    model = make_pipeline(StandardScaler(), machine)
    attack = PGD(2.0, 5, bounds=Box.from_data(X, mask=["bmi", "bp"]))
    scorer = make_robust_scorer(attack, metric="neg_mean_absolute_error")
    grid = {
        "empiricalntkregressor__alpha": [0.1, 10.0],
        "empiricalntkregressor__estimator__widths": [(16,), (32,)],
    }
    search = GridSearchCV(model, grid, scoring=scorer, cv=2).fit(X_train, y_train)
    clean = np.abs(search.predict(X_test) - y_test).mean()
    assert -scorer(search, X_test, y_test) > clean
    contributions = search.best_estimator_[-1].attribute(search.best_estimator_[:-1].transform(X_test))
    assert contributions.shape == (40, 120)
    search.best_estimator_[-1].save(tmp_path / "machine.ntk")
    scaled = search.best_estimator_[:-1].transform(X_test)
    np.testing.assert_array_equal(load(tmp_path / "machine.ntk").predict(scaled), search.predict(X_test))


def test_digits_a_network_is_trained_robustly_made_a_kernel_machine_and_certified():
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X / 16, y, train_size=200, test_size=40, random_state=0)
    trainer = AdversarialKernelTrainer(MLP(widths=(32,)), attack=PGD(0.05, 3), max_epochs=10, random_state=0)
    search = RandomizedSearchCV(
        trainer,
        {"attack__epsilon": [0.02, 0.1], "learning_rate": [0.05, 0.1]},
        n_iter=2,
        cv=2,
        random_state=0,
        scoring=make_robust_scorer(PGD(0.1, 3)),
    )
    best = search.fit(X_train, y_train).best_estimator_
    machine = EmpiricalNTKClassifier(FrozenEstimator(best), alpha=1e-2).fit(X_train, y_train)
    assert machine.robust_score(X_test, y_test, PGD(0.05, 5)) <= machine.score(X_test, y_test)
    top = machine.top_attributions(X_test, k=3)
    assert (y_train[top.helpful] == machine.predict(X_test)[:, None]).mean() > 0.6
    assert certify(machine, X_test[:5], sigma=0.1, n_samples=200).radii.max() > 0
