"""Moves among categories: exact where combinations are few, counted, and never to what no encoder knows."""

from functools import cache
from itertools import product

import jax
import numpy as np
import pandas as pd
import polars as pl
import pytest
from real_tables import penguins, titanic
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from ntkrobust_sk import (
    PGD,
    AutoAttack,
    Box,
    EmpiricalNTKClassifier,
    Square,
    check_evaluation,
    make_robust_scorer,
    minimal_perturbations,
    perturb,
    robust_accuracy,
    robustness_report,
)
from ntkrobust_sk.attacks import attack_in_tiles, categories
from ntkrobust_sk.attacks.categories import categories_of
from ntkrobust_sk.robustness.target import attackable

pytestmark = [
    pytest.mark.filterwarnings("ignore:attacks leave these columns"),
    pytest.mark.filterwarnings("ignore:there is no differentiable form"),
]
FRAME, SURVIVED = titanic()
NUMBERS, NAMES = ["age", "sibsp", "parch", "fare"], ["sex", "embarked", "pclass"]
# among them some of whom age or port are not known
ROWS = FRAME.iloc[[*range(0, 1300, 80), 168, 284]]
LABELS = SURVIVED[ROWS.index]
VALUES = {"sex": ["female", "male"], "embarked": ["C", "Q", "S"], "pclass": [1, 2, 3]}


@cache
def fitted(kind):
    if kind == "boosted":
        return HistGradientBoostingClassifier(max_iter=5, categorical_features=NAMES).fit(FRAME, SURVIVED)
    encoder = OrdinalEncoder(encoded_missing_value=-1) if kind == "forest" else OneHotEncoder()
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), NUMBERS), (encoder, NAMES)
    )
    last = RandomForestClassifier(10, random_state=0) if kind == "forest" else LogisticRegression()
    return make_pipeline(columns, last).fit(FRAME, SURVIVED)


def worst_by_trying(model, frame, labels, n_changes):
    """Which rows are answered rightly whatever is put in, of every combination; None is the row's own category."""
    stands = model.predict(frame) == labels
    for values in product(*([None, *VALUES[name]] for name in NAMES)):
        chosen = {name: value for name, value in zip(NAMES, values, strict=True) if value is not None}
        if len(chosen) <= n_changes:
            other = frame.copy()
            for name, value in chosen.items():
                other[name] = pd.Series([value] * len(frame), index=frame.index, dtype=frame[name].dtype)
            stands &= model.predict(other) == labels
    return stands


def n_changed(found, frame):
    """How many categories differ in each row; what is missing on both sides does not."""
    pairs = [(found[name].astype(object), frame[name].astype(object)) for name in NAMES]
    return sum(((a != b) & ~(a.isna() & b.isna())).astype(int) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("n_changes", [1, 2])
@pytest.mark.parametrize("kind", ["linear", "forest", "boosted"])
def test_the_search_is_exact_where_numbers_stand_still(kind, n_changes):
    model, box = fitted(kind), Box(mask=["fare"], categories=NAMES, n_changes=n_changes)
    found = perturb(model, ROWS, LABELS, Square(1e-9, 1, bounds=box))
    expected = worst_by_trying(model, ROWS, LABELS, n_changes)
    assert ((model.predict(found) == LABELS) == expected).all() and expected.mean() < model.score(ROWS, LABELS)
    assert n_changed(found, ROWS).max() == n_changes


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "forest", "boosted"])
@pytest.mark.parametrize("most", [256, 1], ids=["all", "one by one"])
def test_what_comes_back_is_a_frame_of_the_same_kind_with_known_categories(kind, most, monkeypatch):
    monkeypatch.setattr(categories, "MOST_COMBINATIONS", most)
    model = fitted(kind)
    box = Box({"fare": 0}, mask=["fare"], categories={"embarked": ["C", "S"], "pclass": None}, n_changes=1)
    attack = Square(5.0, 20, bounds=box) if kind != "linear" else PGD(5.0, 5, bounds=box)
    found = perturb(model, ROWS, LABELS, attack)
    assert (found.dtypes == ROWS.dtypes).all() and (found.index == ROWS.index).all()
    kept = ["sex", "age", "sibsp", "parch"]
    pd.testing.assert_frame_equal(found[kept], ROWS[kept])
    moved = found["embarked"].astype(object).ne(ROWS["embarked"].astype(object)) & ~ROWS["embarked"].isna()
    assert found.loc[moved, "embarked"].isin(["C", "S"]).all() and found["pclass"].isin([1, 2, 3]).all()
    assert (moved.astype(int) + (found["pclass"] != ROWS["pclass"])).max() == 1
    assert np.nanmax(np.abs(found["fare"] - ROWS["fare"])) <= 5
    alone = type(attack)(**{**vars(attack), "bounds": Box({"fare": 0}, mask=["fare"])})
    numbers_alone = model.predict(perturb(model, ROWS, LABELS, alone)) == LABELS
    assert not ((model.predict(found) == LABELS) & ~numbers_alone).any()
    assert model.score(found, LABELS) < numbers_alone.mean()


def test_pipelines_keep_their_gradients_while_categories_move():
    box = Box(mask=["fare"], categories=NAMES)
    target = attackable(fitted("linear"), ROWS, LABELS, categories=categories_of(PGD(1.0, bounds=box)))
    assert target.no_gradient_because is None and target.table.named.startswith("'age' (missing")
    frame = target.in_original_form(target.X)
    pd.testing.assert_frame_equal(frame, ROWS)


@pytest.mark.slow
def test_one_change_after_the_other_is_as_good_for_a_sum_of_columns(monkeypatch):
    attack = PGD(1e-9, 1, bounds=Box(mask=["fare"], categories=NAMES))
    exact = robust_accuracy(fitted("linear"), ROWS, LABELS, attack)
    monkeypatch.setattr(categories, "MOST_COMBINATIONS", 1)
    assert robust_accuracy(fitted("linear"), ROWS, LABELS, attack) == exact


@pytest.mark.slow
def test_reports_checks_scorers_and_ensembles_move_categories_too():
    model, box = fitted("linear"), Box(mask=["fare"], categories=["embarked"])
    small, labels = ROWS[:12], LABELS[:12]
    attack = PGD(5.0, 5, bounds=box)
    score = robust_accuracy(model, small, labels, attack)
    assert score == make_robust_scorer(attack)(model, small, labels)
    report = robustness_report(
        model, small, labels, [5.0], bounds=box, attacks=[attack, AutoAttack(5.0, n_steps=5, n_queries=20)]
    )
    assert report.accuracies.min() <= score < report.clean_accuracy
    checks = {check.name: check for check in check_evaluation(model, small, labels, attack, n_queries=20)}
    assert checks["adversarial examples lie in ball and bounds"].passed
    with pytest.raises(TypeError, match="categories of column 'embarked' do not move here"):
        minimal_perturbations(model, small, labels, bounds=box)
    own = EmpiricalNTKClassifier(random_state=0).fit(ROWS[["fare", "sibsp"]], LABELS)
    with pytest.raises(TypeError, match="categories of column 'sibsp' do not move here"):
        own.perturb(ROWS[["fare", "sibsp"]], LABELS, PGD(1.0, bounds=Box(categories={"sibsp": [0, 1]})))


@pytest.mark.slow
def test_a_frame_of_polars_and_a_declared_category():
    X, species = penguins()
    known = X["sex"].isin(["MALE", "FEMALE"]) & X["body_mass_g"].notna()
    X, species = X[known].iloc[::6], species[known].iloc[::6]
    frame = pl.DataFrame({name: column.astype(object).tolist() for name, column in X.items()})
    frame = frame.with_columns(pl.col("island").cast(pl.Enum(["Biscoe", "Dream", "Torgersen"])))
    numbers = list(X.columns[1:5])
    columns = make_column_transformer((StandardScaler(), numbers), (OneHotEncoder(), ["island", "sex"]))
    model = make_pipeline(columns, LogisticRegression()).fit(frame, species)
    box = Box(mask=["culmen_depth_mm"], categories=["island", "sex"], n_changes=1)
    found = perturb(model, frame, species, PGD(1.0, 5, bounds=box))
    assert found.schema == frame.schema and not found["island"].equals(frame["island"])
    both = (found["island"] != frame["island"]).cast(int) + (found["sex"] != frame["sex"]).cast(int)
    assert both.max() == 1 and model.score(found, species) < model.score(frame, species)


@pytest.mark.slow
def test_arrays_move_categories_by_position():
    rows = FRAME.dropna()
    X, y = rows.assign(sex=rows["sex"] == "male", embarked=0).to_numpy(float), SURVIVED[rows.index]
    model = HistGradientBoostingClassifier(max_iter=5, categorical_features=[1, 0]).fit(X, y)
    X, y = X[::20], y[::20]
    found = perturb(model, X, y, Square(1e-9, 1, bounds=Box(-np.inf, np.inf, categories=(1,))))
    assert (found[:, 1] != X[:, 1]).any() and np.isin(found[:, 1], [0, 1]).all()
    flipped = X.copy()
    flipped[:, 1] = 1 - X[:, 1]
    expected = (model.predict(X) == y) & (model.predict(flipped) == y)
    assert ((model.predict(found) == y) == expected).all()
    # a function, with the values themselves
    function = jax.tree_util.Partial(lambda x: jax.numpy.stack([x[:, 1], -x[:, 1]], 1))
    box = Box(-np.inf, np.inf, mask=[False] * 7, categories={1: (0.0, -2.0, 1.0)})
    moved = attack_in_tiles(
        PGD(1.0, bounds=box), function, X, np.zeros(len(X), int), key=jax.random.key(0), rows=8
    )
    assert (moved[:, 1] == -2).all() and (np.delete(moved, 1, 1) == np.delete(X, 1, 1)).all()


@pytest.mark.slow
def test_a_regressor_s_error_grows_by_categories():
    rows = FRAME[FRAME["fare"].notna()].iloc[::40]
    columns = make_column_transformer((SimpleImputer(), ["age", "parch"]), (OneHotEncoder(), ["pclass", "sex"]))
    model = make_pipeline(columns, Ridge()).fit(rows, rows["fare"])
    numbers = robust_accuracy(model, rows, rows["fare"], PGD(1.0, 5, bounds=Box(mask=["parch"])))
    box = Box(mask=["parch"], categories=["pclass"])
    assert robust_accuracy(model, rows, rows["fare"], PGD(1.0, 5, bounds=box)) < numbers - 0.5


@pytest.mark.parametrize(
    "asked, message",
    [
        (
            {"embarked": ["S", "X"]},
            "'X' is no category of column 'embarked' that OneHotEncoder and its dtype",
        ),
        (
            {"pclass": [4]},
            "4 is no category of column 'pclass' that OneHotEncoder knows: these are 1, 2, 3",
        ),
        (["sexx"], "'sexx' in categories, but X has no such column"),
        (["age"], "no encoder of the estimator knows the categories of column 'age'"),
        ([9], "categories must be columns of X, which has 7, got 9"),
    ],
)
def test_categories_that_nobody_knows_are_told(asked, message):
    with pytest.raises(ValueError, match=message):
        perturb(fitted("linear"), ROWS, LABELS, PGD(1.0, bounds=Box(categories=asked)))


def test_categories_of_mere_arrays_need_values():
    function = jax.tree_util.Partial(lambda x: x)
    X, y = np.eye(2, dtype=np.float32), np.zeros(2, int)
    for given in ((1,), {5: (0, 1)}):
        with pytest.raises(ValueError, match="of an array of 2 columns give positions with their values"):
            attack_in_tiles(PGD(1.0, bounds=Box(categories=given)), function, X, y, key=jax.random.key(0), rows=2)
    with pytest.raises(ValueError, match="names the column 'a', but X is no data frame"):
        robust_accuracy(function, X, y, PGD(1.0, bounds=Box(categories=["a"])))
