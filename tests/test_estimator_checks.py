"""All of scikit-learn's estimator checks, in JAX's default float32 and in x64."""

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
# The check compares to 1e-7, below float32 rounding; stochastic gradient descent carries the order of a sum over
# the batch into the weights. It holds in x64, and for the kernel machines in float32 too.
BELOW_ROUNDING = {(AdversarialKernelTrainer, "check_sample_weight_equivalence_on_dense_data")}


@pytest.mark.parametrize("x64", [False, True], ids=["float32", "x64"])
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_check(estimator, check, x64, request):
    name = getattr(check, "func", check).__name__
    if not x64 and (type(estimator), name) in BELOW_ROUNDING:
        reason = "float32 sums depend on their order by more than the check's tolerance of 1e-7"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    with jax.enable_x64(x64):
        check(estimator)
