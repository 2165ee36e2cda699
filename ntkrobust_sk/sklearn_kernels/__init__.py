"""Tangent kernels in scikit-learn's own form of a kernel. Importing this imports its Gaussian processes."""

from .ntk_kernel import NTKKernel as NTKKernel
