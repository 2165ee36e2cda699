"""All of scikit-learn's estimator checks, in JAX's default float32 and in x64. None is expected to fail."""

import jax
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from ntkrobust_sk import (
    AdversarialKernelTrainer,
    EmpiricalNTKClassifier,
    EmpiricalNTKRegressor,
    TangentFeatures,
)

ESTIMATORS = [
    AdversarialKernelTrainer(random_state=0),
    EmpiricalNTKClassifier(random_state=0),
    EmpiricalNTKRegressor(random_state=0),
    TangentFeatures(random_state=0),
]


@pytest.mark.parametrize("x64", [False, True], ids=["float32", "x64"])
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_check(estimator, check, x64):
    with jax.enable_x64(x64):
        check(estimator)
