"""Checks of kernels, for users to run on their own, and Hypothesis strategies to feed them.

A check is a function of a kernel, a model and inputs that returns nothing, or raises ``AssertionError`` with
what it found. The checks need nothing but this package; the strategies need Hypothesis, which is imported on
first use, and this module is not imported with the package.

Two ways of computing one entry differ by rounding. Where a check compares numbers, it allows a difference of
``rtol`` times the largest entry, by default 64 times the resolution eps of the entries' dtype: over dense,
convolutional and residual networks and all four kernels, tiles of other sizes moved entries by up to 5.3 eps
of the largest. Tiles of one size gave identical entries on a CPU, wherever in the tiles an input stood.

Examples
--------
A kernel is any hashable ``kernel(model, x1, x2) -> block``. That of the logits passes:

>>> import jax
>>> from ntkrobust_sk import MLP, Model
>>> network = MLP(n_outputs=3, widths=(4,))
>>> model = Model(network, network.init(jax.random.key(0), (2,)))
>>> X = jax.random.normal(jax.random.key(1), (5, 2))
>>> def logit_kernel(model, x1, x2):
...     return model(x1) @ model(x2).T
>>> check_kernel(logit_kernel, model, X)

and one that looks at the other rows of its block does not:

>>> def centred_kernel(model, x1, x2):
...     return (model(x1) - model(x1).mean(0)) @ (model(x2) - model(x2).mean(0)).T
>>> check_tiling_invariance(centred_kernel, model, X)
Traceback (most recent call last):
AssertionError: in tiles of 1 rows <function centred_kernel ...> has other entries: entry (...) is 0 instead of ...

In a test suite, Hypothesis finds the model and the inputs::

    @given(models((4,)), inputs((4,)))
    def test_my_kernel_is_a_kernel(model, X):
        check_kernel(my_kernel, model, X)
"""

from .laws import check_diagonal as check_diagonal
from .laws import check_dtype_drift as check_dtype_drift
from .laws import check_kernel as check_kernel
from .laws import check_permutation_equivariance as check_permutation_equivariance
from .laws import check_positive_semidefinite as check_positive_semidefinite
from .laws import check_predictor as check_predictor
from .laws import check_scaling as check_scaling
from .laws import check_shape as check_shape
from .laws import check_symmetric as check_symmetric
from .laws import check_tiling_invariance as check_tiling_invariance
from .strategies import inputs as inputs
from .strategies import models as models
from .strategies import networks as networks
from .strategies import tilings as tilings
