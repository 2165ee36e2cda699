"""Where an array lives, and the linear algebra that SciPy, CuPy and the array API spell differently.

The only module that imports CuPy, and it does so on first need: importing the package never touches the GPU.
"""

import warnings
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import scipy.linalg
from array_api_compat import array_namespace, device, is_cupy_array, is_jax_array, is_numpy_array

# An array of NumPy, CuPy, JAX or another namespace of the array API, or what NumPy makes of lists: no type is all.
AnyArray: TypeAlias = Any

# Rows that are brought to double precision at once: a core's cache holds them until they are multiplied.
PRODUCT_ROWS = 128


@cache
def cupy_or_none():
    """Return the CuPy module if it is installed and sees a GPU, else None. Probed once a process.

    CuPy may be installed on a machine without a GPU, where it imports but computes nothing.

    Examples
    --------
    >>> cupy_or_none() is cupy_or_none()
    True
    """
    try:
        import cupy  # pyright: ignore[reportMissingImports]  # there is none without a GPU
    except ImportError:
        return None
    return cupy if cupy.cuda.is_available() else None


def to_solver_array(a):
    """Give an array to the library that solves on its device, without a copy where there is a way.

    ==============================  ===========================================================
    input                           output
    ==============================  ===========================================================
    NumPy, CuPy, array API objects  the same object
    JAX on a GPU, CuPy usable       CuPy, same memory (DLPack)
    JAX on a GPU, no CuPy           NumPy, copied to the host; warns once a process
    JAX on the CPU                  NumPy, same memory (read-only)
    lists and anything else         NumPy, by ``numpy.asarray``
    ==============================  ===========================================================

    JAX reserves most of a GPU when it starts, which starves CuPy in the same process. Set
    ``XLA_PYTHON_CLIENT_PREALLOCATE=false`` before importing JAX when both are to share one.

    Parameters
    ----------
    a : array
        Any shape, any dtype.

    Returns
    -------
    array
        Shares memory with ``a`` wherever the table says so: treat it as read-only.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> type(to_solver_array(jnp.ones(2)))
    <class 'numpy.ndarray'>
    """
    if is_jax_array(a):
        return _from_jax(a)
    if is_numpy_array(a) or is_cupy_array(a) or hasattr(a, "__array_namespace__"):
        return a
    return np.asarray(a)


def _from_jax(a):
    if not _on_gpu(a):
        return np.asarray(a)
    cupy = cupy_or_none()
    if cupy is not None:
        return cupy.from_dlpack(a)
    _warn_of_host_copy()
    return np.asarray(a)


def _on_gpu(a):
    return any(d.platform == "gpu" for d in a.devices())


@cache
def _warn_of_host_copy():
    warnings.warn(
        "JAX arrays on the GPU are copied to the host (8 n^2 bytes for a float64 Gram matrix) and solved on "
        "the CPU (n^3/3 multiply-adds), because CuPy is not installed or sees no GPU. To solve on the GPU: "
        "pip install 'ntkrobust_sk[gpu]'.",
        RuntimeWarning,
        stacklevel=5,
    )


def to_numpy(a):
    """Copy to host memory if ``a`` is on a GPU, view it as NumPy otherwise.

    Examples
    --------
    >>> to_numpy([1.0, 2.0])
    array([1., 2.])
    """
    return a.get() if is_cupy_array(a) else np.asarray(a)


def as_array_like(a, reference):
    """Bring ``a`` to the namespace and device of ``reference``; where it is there already, return it.

    Examples
    --------
    >>> as_array_like([1, 2], np.zeros(3))
    array([1, 2])
    """
    a = to_solver_array(a)
    xp = array_namespace(reference)
    if array_namespace(a) is xp and device(a) == device(reference):
        return a
    return xp.asarray(to_numpy(a), device=device(reference))


def gpu_bytes_free() -> int:
    """Return the bytes that CuPy may still take of the GPU: what nobody has, and what it keeps for itself."""
    cupy = cupy_or_none()
    if cupy is None:
        raise RuntimeError("there is no CuPy, or no GPU that it sees")
    return cupy.cuda.runtime.memGetInfo()[0] + cupy.get_default_memory_pool().free_bytes()


def to_gpu_of(A: np.ndarray, source: AnyArray, n_arrays: int) -> AnyArray:
    """Bring a matrix of the host to the GPU that ``source`` lives on, if CuPy has room there for so many like it.

    Otherwise it stays where it is.

    Examples
    --------
    >>> type(to_gpu_of(np.eye(2), [[1.0, 0.0], [0.0, 1.0]], 2))
    <class 'numpy.ndarray'>
    """
    on_gpu = is_cupy_array(source) or (is_jax_array(source) and _on_gpu(source))
    cupy = cupy_or_none() if on_gpu else None
    if cupy is None or n_arrays * A.nbytes > gpu_bytes_free():
        return A
    return cupy.asarray(A)


def cholesky(A):
    """Compute the lower triangular L with L Lᵀ = A; raise ``numpy.linalg.LinAlgError`` if there is none.

    SciPy rather than NumPy on the host: half the memory, and its error names the failing minor. CuPy returns
    garbage for an indefinite matrix unless told to raise.

    Examples
    --------
    >>> cholesky(np.array([[4.0, 2.0], [2.0, 5.0]]))
    array([[2., 0.],
           [1., 2.]])
    """
    if is_numpy_array(A):
        return scipy.linalg.cholesky(A, lower=True, check_finite=False)
    return _raising(A, array_namespace(A).linalg.cholesky)


def cholesky_factor(A, *, overwrite=False):
    """Compute the lower triangular L with L Lᵀ = A for :func:`solve_triangular`; what is above it is arbitrary.

    On the host LAPACK writes L where half of a copy of A was, or of A itself with ``overwrite``: half of it stays
    in the other triangle, without the diagonal (:func:`symmetric_product`).

    Examples
    --------
    >>> float(cholesky_factor(np.array([[4.0, 2.0], [2.0, 5.0]]))[1, 1])
    2.0
    """
    if not is_numpy_array(A):
        return cholesky(A)
    # the transpose of a matrix in C's order has Fortran's, and is the same matrix
    A = A.T if A.flags.c_contiguous else A
    (potrf,) = scipy.linalg.get_lapack_funcs(("potrf",), (A,))
    L, info = potrf(A, lower=True, clean=False, overwrite_a=overwrite)
    if info > 0:
        raise np.linalg.LinAlgError(f"{info}-th leading minor of the array is not positive definite")
    return L


def host_product(A, V):
    """Compute A V, in double precision, of a matrix of NumPy in any precision and few columns (n, k).

    It takes SciPy's BLAS, whose LAPACK solves: NumPy brings one of its own, and while the threads of one wait for
    work they keep the cores from those of the other. Of A no more than some rows are in double precision at once.

    Examples
    --------
    >>> host_product(np.array([[2.0, 1.0], [1.0, 2.0]], np.float32), np.array([[1.0], [3.0]]))
    array([[5.],
           [7.]])
    """
    V = np.asfortranarray(V, dtype=np.float64)
    (gemm,) = scipy.linalg.get_blas_funcs(("gemm",), (V,))
    if A.dtype == np.float64 and A.flags.c_contiguous:
        return gemm(1.0, A.T, V, trans_a=True)
    found, wide = np.empty((len(A), V.shape[1])), np.empty((PRODUCT_ROWS, A.shape[1]))
    for at in range(0, len(A), PRODUCT_ROWS):
        rows = wide[: len(A) - at]
        rows[:] = A[at : at + PRODUCT_ROWS]
        found[at : at + PRODUCT_ROWS] = gemm(1.0, rows.T, V, trans_a=True)
    return found


def symmetric_product(L, diagonal, X):
    """Compute A X of the A whose upper triangle is still that of L, (n, n); its ``diagonal`` (n,) is put back.

    Examples
    --------
    >>> symmetric_product(np.array([[2.0, 2.0], [1.0, 2.0]], order="F"), np.array([4.0, 5.0]), np.eye(2))
    array([[4., 2.],
           [2., 5.]])
    """
    (symm,) = scipy.linalg.get_blas_funcs(("symm",), (L, X))
    np.fill_diagonal(L, diagonal)
    return symm(1.0, L, X, lower=False)


def eigh(A):
    """Compute eigenvalues, ascending, and eigenvectors of a symmetric matrix.

    Examples
    --------
    >>> eigh(np.diag([3.0, 1.0]))[0]
    array([1., 3.])
    """
    return _raising(A, array_namespace(A).linalg.eigh)


def eigvalsh(A):
    """Compute the eigenvalues, ascending, of a symmetric matrix.

    Examples
    --------
    >>> eigvalsh(np.diag([3.0, 1.0]))
    array([1., 3.])
    """
    return _raising(A, array_namespace(A).linalg.eigvalsh)


def _raising(A, function):
    if not is_cupy_array(A):
        return function(A)
    import cupyx  # pyright: ignore[reportMissingImports]

    with cupyx.errstate(linalg="raise"):
        return function(A)


def cholesky_solve(L, B):
    """Solve L Lᵀ X = B on the host, for an (n, n) L of :func:`cholesky_factor` and an (n, k) B.

    Examples
    --------
    >>> cholesky_solve(cholesky_factor(np.array([[4.0, 2.0], [2.0, 5.0]])), np.array([[8.0], [4.0]]))
    array([[2.],
           [0.]])
    """
    (potrs,) = scipy.linalg.get_lapack_funcs(("potrs",), (L, B))
    return potrs(L, B, lower=True)[0]


def solve_triangular(L, B, *, transposed=False):
    """Solve L X = B, or Lᵀ X = B, for a lower triangular (n, n) L and an (n, k) B.

    Examples
    --------
    >>> solve_triangular(np.array([[2.0, 0.0], [1.0, 2.0]]), np.array([[2.0], [5.0]]))
    array([[1.],
           [2.]])
    """
    if is_numpy_array(L):
        if L.flags.f_contiguous:
            (trtrs,) = scipy.linalg.get_lapack_funcs(("trtrs",), (L, B))
            X, info = trtrs(L, B, lower=True, trans=1 if transposed else 0)
            if info > 0:
                raise np.linalg.LinAlgError(f"the triangular matrix has a zero on its diagonal, in row {info - 1}")
            return X
        solve = scipy.linalg.solve_triangular
    elif is_cupy_array(L):
        from cupyx.scipy.linalg import solve_triangular as solve  # pyright: ignore[reportMissingImports]
    else:
        return array_namespace(L).linalg.solve(L.T if transposed else L, B)
    # cuBLAS wants Fortran order, which the transpose of CuPy's C-ordered factor already has: no n x n copy.
    return solve(L.T, B, lower=False, trans=0 if transposed else 1, check_finite=False)
