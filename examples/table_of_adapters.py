"""Every parameter of every scikit-learn class that as_model knows: read, irrelevant to the function, or refused.

    python examples/table_of_adapters.py              # all classes, half a minute
    python examples/table_of_adapters.py SVC Nystroem

For each parameter, several other values are given twice: before ``fit``, and to an estimator that has been fitted.
Then the estimator's own answers, on rows that it was not fitted on, are compared with those of its model.

- read: the estimator's answers change with the parameter after ``fit``, and the model's with them;
- irrelevant: nothing changes after ``fit``; what it did is in the fitted attributes, for the reason given;
- refused: ``as_model`` raises TypeError for each value that can be tried.

Values that ``as_model`` refuses of parameters that it reads are listed. The program ends with an error if a
model's answers are not its estimator's, if a parameter behaves in another way than ``READ`` and ``IRRELEVANT``
say, or if they do not know it: then a new version of scikit-learn has a new parameter, which somebody has to see.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import os
import sys
import tempfile
import warnings
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax
from sklearn.covariance import LedoitWolf
from sklearn.feature_selection import f_classif, mutual_info_classif
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import kernels
from sklearn.linear_model import BayesianRidge, LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import MinMaxScaler, PowerTransformer, QuantileTransformer, RobustScaler, StandardScaler
from sklearn.svm import SVC
from sklearn.utils import all_estimators

from ntkrobust_sk import as_model
from ntkrobust_sk.execution.precision import enable_x64
from ntkrobust_sk.sklearn_models import ADAPTERS, COMPOSITIONS, MACHINES
from ntkrobust_sk.sklearn_models.discriminants import deciding_scores
from ntkrobust_sk.sklearn_models.guard import METHODS

random = np.random.default_rng(0)
X = random.uniform(0.1, 1.0, (40, 4))
Y = np.digitize(X[:, 0] + X[:, 1] ** 2 + 0.1 * random.normal(size=40), [0.6, 1.1])
QUERIES = np.concatenate([random.uniform(0.1, 1.0, (6, 4)), random.uniform(-0.5, 2.0, (6, 4))])

# Why a parameter cannot change what a fitted estimator computes.
IRRELEVANT = {
    "the loss, the prior or the penalty, while fitting": (
        "C alpha alpha_1 alpha_2 alpha_init class_weight epsilon fit_intercept intercept_scaling l1_ratio "
        "lambda_1 lambda_2 lambda_init loss nu penalty positive priors shrinkage multi_class "
        "threshold_lambda average probability score_func covariance_estimator var_smoothing reg_param "
        "shrink_threshold"
    ),
    "the solver, while fitting": (
        "max_iter tol solver selection precompute warm_start random_state dual copy_X copy verbose cache_size "
        "shrinking eta0 learning_rate learning_rate_init power_t early_stopping validation_fraction "
        "n_iter_no_change shuffle batch_size beta_1 beta_2 momentum nesterovs_momentum max_fun eigen_solver "
        "iterated_power n_oversamples power_iteration_normalizer svd_solver optimizer n_restarts_optimizer "
        "max_iter_predict copy_X_train gcv_mode"
    ),
    "a choice between models, while fitting": (
        "Cs alphas n_alphas l1_ratios eps cv scoring refit error_score pre_dispatch return_train_score n_iter "
        "param_grid param_distributions prefit alpha_per_target use_legacy_attributes ensemble method "
        "final_estimator stack_method"
    ),
    "which samples and features members are fitted on": (
        "bootstrap bootstrap_features max_features max_samples oob_score subsample ignore_implicit_zeros"
    ),
    "records of the fit": "compute_score store_covariance store_cv_results memory force_int_remainder_cols",
    "how fast, or in which form, the same numbers come": (
        "n_jobs order sparse_threshold verbose_feature_names_out accept_sparse validate feature_names_out "
        "sparse_output dtype feature_name_combiner flatten_transform"
    ),
    "the way back, which no model takes": "fit_inverse_transform check_inverse inverse_func inv_kw_args func",
    "whether other categories than those of training are an error, which models do not raise": "handle_unknown",
    "metadata of fit": "transform_input",
    "columns without any value, of which there are none in the inputs here": (
        "keep_empty_features handle_missing encoded_missing_value"
    ),
    "the answer predict gives to ties, which scores leave open": "break_ties",
    "answers of an estimator that is not fitted": "n_targets",
    "the size of what is fitted": (
        "n_components hidden_layer_sizes transformers remainder quantile_range unit_variance remove_zero_eig "
        "estimator estimators regressor transformer n_quantiles n_knots knots "
        "categories passthrough drop min_frequency max_categories"
    ),
    "what is read as it was at the time of fitting": (
        "degree gamma kernel kernel_params normalize_y strategy fill_value"
    ),
}
# What the fitted estimator itself looks at when it is asked.
READ = {
    "ColumnTransformer": "transformer_weights",
    "FeatureUnion": "transformer_list transformer_weights",
    "FrozenEstimator": "estimator",
    "FunctionTransformer": "func kw_args",
    "KernelPCA": "coef0 degree kernel",
    "KernelRidge": "coef0 degree gamma kernel",
    "MLPClassifier": "activation",
    "MLPRegressor": "activation",
    "MaxAbsScaler": "clip",
    "MinMaxScaler": "clip feature_range",
    "Normalizer": "norm",
    "NuSVC": "coef0 decision_function_shape degree kernel",
    "NuSVR": "coef0 degree kernel",
    "Nystroem": "coef0 degree gamma kernel kernel_params",
    "PCA": "whiten",
    "Pipeline": "steps",
    "PolynomialFeatures": "include_bias interaction_only",
    "PowerTransformer": "standardize",
    "QuantileTransformer": "output_distribution",
    "SplineTransformer": "extrapolation include_bias degree",
    "BaggingClassifier": "n_estimators",
    "BaggingRegressor": "n_estimators",
    "NearestCentroid": "metric",
    "OrdinalEncoder": "unknown_value",
    "VotingClassifier": "voting weights",
    "VotingRegressor": "weights",
    "RBFSampler": "n_components",
    "RobustScaler": "with_centering with_scaling",
    "SVC": "coef0 decision_function_shape degree kernel",
    "SVR": "coef0 degree kernel",
    "SelectFromModel": "threshold max_features importance_getter norm_order",
    "SelectKBest": "k",
    "SelectPercentile": "percentile",
    "SimpleImputer": "add_indicator missing_values",
    "StandardScaler": "with_mean with_std",
    "VarianceThreshold": "threshold",
}
# What estimators are made from, where the defaults do not do.
QUICK = {
    "ColumnTransformer": {"transformers": [("a", StandardScaler(), [2, 0]), ("b", MinMaxScaler(), [1])]},
    "ElasticNetCV": {"cv": 2, "alphas": 3},
    "FeatureUnion": {"transformer_list": [("a", StandardScaler()), ("b", MinMaxScaler())]},
    "FrozenEstimator": {"estimator": LogisticRegression().fit(X, Y)},
    "GaussianProcessClassifier": {"kernel": kernels.RBF(), "optimizer": None},
    "GaussianProcessRegressor": {"kernel": kernels.RBF(), "optimizer": None, "alpha": 0.1},
    "GridSearchCV": {"estimator": Ridge(), "param_grid": {"alpha": [0.1, 1.0]}, "cv": 2},
    "KernelPCA": {"kernel": "poly", "n_components": 3, "gamma": 0.7},
    "KernelRidge": {"kernel": "poly", "gamma": 0.7},
    "LassoCV": {"cv": 2, "alphas": 3},
    "LogisticRegressionCV": {"cv": 2, "Cs": 2},
    "LinearDiscriminantAnalysis": {"solver": "eigen"},
    "MLPClassifier": {"hidden_layer_sizes": (4,), "max_iter": 3, "random_state": 0},
    "MLPRegressor": {"hidden_layer_sizes": (4,), "max_iter": 3, "random_state": 0},
    "MinMaxScaler": {"clip": True},
    "NuSVC": {"kernel": "poly", "nu": 0.3},
    "NuSVR": {"kernel": "poly"},
    "Nystroem": {"kernel": "poly", "n_components": 8, "random_state": 0},
    "BaggingClassifier": {"estimator": LogisticRegression(), "n_estimators": 2, "random_state": 0},
    "BaggingRegressor": {"estimator": Ridge(), "n_estimators": 2, "random_state": 0},
    "CalibratedClassifierCV": {"estimator": LogisticRegression(), "cv": 2},
    "OneVsRestClassifier": {"estimator": LogisticRegression()},
    "OneHotEncoder": {"handle_unknown": "ignore"},
    "OrdinalEncoder": {"handle_unknown": "use_encoded_value", "unknown_value": -1},
    "PCA": {"n_components": 2},
    "QuadraticDiscriminantAnalysis": {"solver": "eigen", "shrinkage": 0.5},
    "QuantileTransformer": {"n_quantiles": 20},
    "StackingClassifier": {"estimators": [("a", LogisticRegression()), ("b", GaussianNB())], "cv": 2},
    "StackingRegressor": {"estimators": [("a", Ridge()), ("b", BayesianRidge())], "cv": 2},
    "TransformedTargetRegressor": {"regressor": Ridge()},
    "VotingClassifier": {"estimators": [("a", LogisticRegression()), ("b", GaussianNB())], "voting": "soft"},
    "VotingRegressor": {"estimators": [("a", Ridge()), ("b", BayesianRidge())]},
    "Pipeline": {"steps": [("scale", StandardScaler()), ("last", LogisticRegression())]},
    "RBFSampler": {"n_components": 8, "random_state": 0},
    "RandomizedSearchCV": {
        "estimator": Ridge(),
        "param_distributions": {"alpha": [0.1, 1.0]},
        "cv": 2,
        "n_iter": 1,
    },
    "SGDClassifier": {"random_state": 0},
    "SVC": {"kernel": "poly"},
    "SVR": {"kernel": "poly"},
    "SelectFromModel": {"estimator": LogisticRegression().fit(X, X[:, 3] > 0.5)},
    "SelectKBest": {"k": 2},
    "SelectPercentile": {"percentile": 50},
    "SimpleImputer": {"missing_values": X[0, 0], "add_indicator": True},
}
# Other values than those that a parameter's constraints suggest.
VALUES = {
    "Cs": [3],
    "activation": ["tanh", "logistic", "identity"],
    "alphas": [4, [0.1, 2.0]],
    "batch_size": [10],
    "class_weight": ["balanced", {0: 1.0, 1: 2.0, 2: 0.5}],
    "covariance_estimator": [LedoitWolf()],
    "cv": [3],
    "degree": [2],
    "early_stopping": [True],
    "epsilon": [0.2],
    "error_score": [0.0],
    "estimator": [LogisticRegression(C=0.1).fit(X, Y), Ridge(alpha=3.0).fit(X, Y)],
    "feature_names_out": ["one-to-one"],
    "feature_range": [(0.3, 0.6)],
    "force_int_remainder_cols": [True],
    "func": [np.abs],
    "gamma": [0.6],
    "hidden_layer_sizes": [(), (3, 5)],
    "importance_getter": [lambda estimator: np.arange(4.0)],
    "fill_value": [0.3],
    "inv_kw_args": [{}],
    "inverse_func": [np.abs],
    "k": [3, "all"],
    "kernel_params": [{"gamma": 0.2, "degree": 2, "coef0": 0.3}],
    "kw_args": [{"where": True}],
    "l1_ratio": [0.3],
    "l1_ratios": [(0.5,)],
    "loss": ["huber", "log_loss", "hinge", "poisson", "squared_epsilon_insensitive"],
    "missing_values": [QUERIES[0, 1], X[1, 2], np.nan],
    "memory": [tempfile.mkdtemp()],
    "n_alphas": [4],
    "n_jobs": [1],
    "n_targets": [None, 1],
    "nu": [0.2],
    "optimizer": [None, "fmin_l_bfgs_b"],
    "param_distributions": [{"alpha": [3.0]}],
    "param_grid": [{"alpha": [3.0]}],
    "pre_dispatch": ["n_jobs"],
    "penalty": ["l2", "l1", None],
    "percentile": [75, 100],
    "priors": [(0.5, 0.25, 0.25)],
    "quantile_range": [(10, 90)],
    "remainder": ["passthrough", StandardScaler()],
    "score_func": [f_classif, mutual_info_classif],
    "scoring": ["neg_mean_squared_error", "accuracy"],
    "sparse_threshold": [0.0, 1.0],
    "steps": [
        [("scale", MinMaxScaler().fit(X)), ("last", LogisticRegression().fit(X, Y))],
        [("nothing", "passthrough"), ("last", LogisticRegression().fit(X, Y))],
    ],
    "threshold": ["0.5*mean", "median", 0.07],
    "transform_input": [[]],
    "transformer_list": [[("a", RobustScaler().fit(X)), ("b", "drop"), ("c", "passthrough")]],
    "transformer_weights": [{"a": 0.1, "b": 10.0}, {"b": 3}],
    "transformers": [[("a", RobustScaler(), slice(1, 3)), ("b", "drop", [0]), ("c", "passthrough", [3])]],
    "validation_fraction": [0.3],
    "verbose": [1],
    "weights": [[2.0, 0.5]],
    "verbose_feature_names_out": [False],
}
# Some differ by class.
VALUES_OF = {
    ("NearestCentroid", "metric"): ["manhattan"],
    ("Normalizer", "norm"): ["l1", "max"],
    ("OneHotEncoder", "categories"): [[np.unique(column) for column in X.T]],
    ("OneHotEncoder", "dtype"): [np.float32],
    ("OneHotEncoder", "feature_name_combiner"): [lambda feature, category: f"{feature} {category}"],
    ("OneHotEncoder", "drop"): ["first", "if_binary"],
    ("OneHotEncoder", "handle_unknown"): ["infrequent_if_exist", "error"],
    ("OneHotEncoder", "max_categories"): [3],
    ("OneHotEncoder", "min_frequency"): [2],
    ("OrdinalEncoder", "categories"): [[np.unique(column) for column in X.T]],
    ("OrdinalEncoder", "dtype"): [np.float32],
    ("OrdinalEncoder", "encoded_missing_value"): [-2],
    ("OrdinalEncoder", "max_categories"): [3],
    ("OrdinalEncoder", "min_frequency"): [2],
    ("OrdinalEncoder", "unknown_value"): [-3],
    ("StackingClassifier", "estimators"): [[("a", SVC()), ("b", "drop"), ("c", GaussianNB())]],
    ("StackingClassifier", "final_estimator"): [SVC()],
    ("StackingRegressor", "estimators"): [[("a", Ridge(3.0)), ("b", "drop")]],
    ("StackingRegressor", "final_estimator"): [Ridge(3.0)],
    ("TransformedTargetRegressor", "func"): [np.log1p],
    ("TransformedTargetRegressor", "inverse_func"): [np.expm1],
    ("TransformedTargetRegressor", "regressor"): [BayesianRidge()],
    ("TransformedTargetRegressor", "transformer"): [StandardScaler(), PowerTransformer(), QuantileTransformer()],
    ("VotingClassifier", "estimators"): [[("a", LogisticRegression(C=0.1)), ("b", "drop")]],
    ("VotingRegressor", "estimators"): [[("a", Ridge(3.0)), ("b", "drop")]],
    ("GaussianProcessClassifier", "kernel"): [
        kernels.Matern(nu=1.5),
        2.0 * kernels.RBF(0.5),
        kernels.PairwiseKernel(),
    ],
    ("GaussianProcessRegressor", "kernel"): [kernels.Matern(nu=0.7), kernels.DotProduct() + kernels.WhiteKernel()],
    ("MLPRegressor", "loss"): ["poisson"],
    ("PolynomialFeatures", "degree"): [3, (1, 2)],
    ("HuberRegressor", "epsilon"): [1.7],
    ("RandomizedSearchCV", "estimator"): [StandardScaler(), Ridge(alpha=3.0)],
    ("GridSearchCV", "estimator"): [Ridge(fit_intercept=False)],
    ("RandomizedSearchCV", "refit"): [lambda results: 0],
    ("GridSearchCV", "refit"): [lambda results: 1],
    ("LogisticRegressionCV", "scoring"): ["accuracy"],
    ("VarianceThreshold", "threshold"): [float(np.median(X.var(0)))],
    ("PCA", "n_components"): [1, 0.9, "mle"],
    ("NuSVC", "gamma"): ["auto", 0.6],
    ("NuSVR", "gamma"): ["auto", 0.6],
    ("RBFSampler", "gamma"): ["scale", 0.6],
    ("SVC", "gamma"): ["auto", 0.6],
    ("SVR", "gamma"): ["auto", 0.6],
    ("GaussianProcessRegressor", "alpha"): [0.5],
}


@dataclass
class Verdict:
    """The fate of a parameter."""

    estimator: str
    parameter: str
    changes: bool = False  # the fitted estimator's answers
    agreed: int = 0
    refused: tuple = ()
    wrong: tuple = ()

    @property
    def says(self) -> str:
        if self.refused and not self.agreed:
            return "refused"
        return "read" if self.changes else "irrelevant"

    @property
    def stated(self) -> str | None:
        """Return what READ and IRRELEVANT say, or None."""
        if self.parameter in READ.get(self.estimator, "").split():
            return "read"
        return "irrelevant" if self.reason else None

    @property
    def reason(self) -> str:
        return next((why for why, names in IRRELEVANT.items() if self.parameter in names.split()), "")

    @property
    def fault(self) -> str:
        """Say what is wrong with it, or nothing."""
        name = f"{self.estimator}({self.parameter}=...)"
        if self.wrong:
            return f"{name}: the model differs from the estimator for {', '.join(self.wrong)}"
        if not self.agreed and not self.refused:
            return f"{name}: no value could be tried; add one to VALUES"
        if self.stated is None:
            return f"{name}: nobody has looked at this parameter; add it to READ or IRRELEVANT"
        if self.says not in (self.stated, "refused"):
            return f"{name} is {self.says}, and listed as {self.stated}"
        return ""


def adapted_classes() -> dict:
    """By name, those that as_model knows."""
    known = dict(all_estimators()) | {"FrozenEstimator": FrozenEstimator}
    return {name: known[name] for name in sorted(ADAPTERS | COMPOSITIONS | MACHINES)}


def parameters_of(cls) -> list[str]:
    """All that scikit-learn lets one give."""
    return sorted({*getattr(cls, "_parameter_constraints", {}), *cls._get_param_names()})


def values_of(cls, parameter: str, default) -> list:
    """Some values other than the default."""
    if (cls.__name__, parameter) in VALUES_OF:
        return VALUES_OF[cls.__name__, parameter]
    found = list(VALUES.get(parameter, ()))
    for constraint in () if found else getattr(cls, "_parameter_constraints", {}).get(parameter, ()):
        if constraint == "boolean":
            found += [not default]
        elif hasattr(constraint, "options"):
            found += sorted(constraint.options, key=str)
        elif hasattr(constraint, "left"):
            found += [_inside(constraint, default)]
        elif constraint == "random_state":
            found += [1]
    return [value for value in found if not (type(value) is type(default) and value is default)]


def _inside(interval, default):
    """A number in an interval, another than the default."""
    low = 0 if interval.left is None else interval.left
    high = interval.right
    if interval.type.__name__ == "Integral":
        start = default if isinstance(default, int) and not isinstance(default, bool) else int(low)
        return start + 1 if high is None or start + 1 <= high else int(high)
    start = float(default) if isinstance(default, int | float) and not isinstance(default, bool) else float(low)
    moved = 1.5 * start if start else 0.25
    return moved if high is None or moved < high else start / 2


def own_answers(estimator, rows=QUERIES) -> np.ndarray:
    """Return what scikit-learn answers, in the form in which models answer."""
    if hasattr(estimator, "decision_function_shape"):
        # the model's scores are always those of one class against the rest
        estimator = copy.copy(estimator).set_params(decision_function_shape="ovr", break_ties=False)
    if type(estimator).__name__ == "NearestCentroid":
        return deciding_scores(estimator, rows)
    if by_probability(estimator):
        return np.log(np.maximum(estimator.predict_proba(rows.copy()), np.finfo(float).tiny))
    if hasattr(estimator, "decision_function"):
        return np.asarray(estimator.decision_function(rows.copy()))
    found = (estimator.predict if hasattr(estimator, "predict") else estimator.transform)(rows.copy())
    found = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
    return found.reshape(len(rows), -1)


def by_probability(estimator) -> bool:
    """Tell whether it answers by its probabilities."""
    name = type(estimator).__name__
    only = hasattr(estimator, "classes_") and not hasattr(estimator, "decision_function")
    return METHODS.get(name) == "predict_proba" or (only and name != "NearestCentroid")


def agrees(estimator) -> bool:
    """Tell whether the model's answers are the estimator's; TypeError where there is no model."""
    model = as_model(estimator)
    try:
        rows, own = QUERIES, own_answers(estimator)
    except ValueError:
        # some refuse inputs far from those of training
        rows, own = X, own_answers(estimator, X)
    found = np.asarray(model(jnp.asarray(rows)))
    if by_probability(estimator):
        found = log_softmax(found, axis=1)
    return found.shape == own.shape and np.allclose(found, own, rtol=1e-5, atol=1e-7, equal_nan=True)


@contextlib.contextmanager
def silence():
    """Nothing is printed, neither by Python nor by C."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def verdicts_on(cls) -> list[Verdict]:
    """One for each parameter."""
    base = cls(**QUICK.get(cls.__name__, {}))
    with enable_x64(True), warnings.catch_warnings(), silence():
        warnings.simplefilter("ignore")
        fitted = base if cls is FrozenEstimator else base.fit(X.copy(), Y)
        before = own_answers(fitted)
        return [_verdict(cls, base, fitted, before, name) for name in parameters_of(cls)]


def _verdict(cls, base, fitted, before, name):
    verdict = Verdict(cls.__name__, name)
    for value in values_of(cls, name, base.get_params(deep=False).get(name)):
        try:
            new = cls(**base.get_params(deep=False) | {name: value})
            _try(verdict, value, new if cls is FrozenEstimator else new.fit(X.copy(), Y))
        except NOT_TO_BE_FITTED:
            pass
        changed = copy.copy(fitted)
        setattr(changed, name, value)
        try:
            after = own_answers(changed)
        except NOT_TO_BE_FITTED:
            if _answers_training_inputs(changed):
                _try(verdict, value, changed)
            else:
                # what was fitted for another value cannot answer, which the guard has to notice
                _refuses(verdict, value, changed)
            continue
        same = after.shape == before.shape and np.allclose(after, before, rtol=1e-9, atol=1e-12)
        verdict.changes |= not same or _is_another_shape(name, value, fitted)
        _try(verdict, value, changed)
    return verdict


# scikit-learn's words for values that do not go together with the others.
NOT_TO_BE_FITTED = (ValueError, AttributeError, NotImplementedError, TypeError, LookupError)


def _answers_training_inputs(estimator) -> bool:
    try:
        return bool(np.isfinite(own_answers(estimator, X)).all())
    except NOT_TO_BE_FITTED:
        return False


def _is_another_shape(name, value, fitted) -> bool:
    """decision_function_shape is undone by own_answers, to be compared."""
    return name == "decision_function_shape" and value != fitted.decision_function_shape


def _try(verdict, value, estimator):
    try:
        right = agrees(estimator)
    except TypeError:
        verdict.refused = (*verdict.refused, repr(value))
        return
    verdict.agreed += right
    verdict.wrong += () if right else (repr(value),)


def _refuses(verdict, value, estimator):
    try:
        as_model(estimator)
    except (TypeError, ValueError):
        verdict.refused = (*verdict.refused, repr(value))
    else:
        verdict.wrong = (*verdict.wrong, repr(value))


def main() -> int:
    """Print the table; return how many faults there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "classes", nargs="*", help="names of scikit-learn classes; all that are adapted if none is given"
    )
    wanted, faults = parser.parse_args().classes, []
    print(f"{'class':26} {'parameter':28} {'verdict':11} reason, or values that are refused")
    for name, cls in adapted_classes().items():
        for verdict in verdicts_on(cls) if not wanted or name in wanted else ():
            more = verdict.reason if verdict.says == "irrelevant" else "; ".join(dict.fromkeys(verdict.refused))
            print(f"{name:26} {verdict.parameter:28} {verdict.says:11} {more[:100]}", flush=True)
            faults += [verdict.fault] if verdict.fault else []
    print(*faults, sep="\n")
    return len(faults)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
