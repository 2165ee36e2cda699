"""Measures on Gram matrices: how far a kernel moved, and what it is aligned with.

Arrays in, floats out. Every function takes any array (NumPy, JAX, CuPy, array API) and computes on the host
in float64. All but the radius of :func:`polar_dynamics` are blind to the scale of a kernel, and alignments are
uncentred unless ``centered=True``. Measures of one kernel's spectrum are in :mod:`.spectra`.

Matrices that are never formed (:func:`~ntkrobust_sk.gram_operator`, or any other SciPy ``LinearOperator``) are
measured by products with some random columns, which ``probes`` states. Such a result is an
:class:`~ntkrobust_sk.analysis.Estimate`: a float with its ``standard_error``.
"""

import math

import numpy as np

from .._arrays import AnyArray
from .._validation import array, check_choice, flag, number
from . import estimates
from .checked import COMPLEX, checked_gram, checked_pair, checked_targets
from .sketches import PROBES, Estimate, Probes, are_operators, checked_operator


def kernel_distance(K1: AnyArray, K2: AnyArray, *, probes: Probes = PROBES) -> float:
    """Compute the kernel distance S(K1, K2) = 1 - ⟨K1, K2⟩_F / (‖K1‖_F ‖K2‖_F), uncentred.

    From Fort et al. 2020, arXiv:2010.15110. Computed as ½ ‖K1/‖K1‖ - K2/‖K2‖‖², which keeps its digits when
    two kernels are close.

    Parameters
    ----------
    K1, K2 : array or operator (n, n)
        Symmetric Gram matrices of the same samples.
    probes : Probes
        For operators.

    Returns
    -------
    distance : float
        In [0, 1] for positive semidefinite matrices, in [0, 2] for any. 0 for K2 = c K1 with c > 0.

    Raises
    ------
    ValueError
        If a matrix is not square, finite, symmetric and nonzero, or the shapes differ.

    Examples
    --------
    >>> kernel_distance([[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 5.0]])
    1.0
    """
    if are_operators(probes, K1=K1, K2=K2):
        return estimates.distance(K1, K2, probes)
    (K1, norm1, _), (K2, norm2, _) = checked_pair(K1=K1, K2=K2)
    chord = K1 / norm1
    chord -= K2 / norm2
    return min(0.5 * float(np.vdot(chord, chord)), 2.0)


def kernel_velocity(K1: AnyArray, K2: AnyArray, dt: float, *, probes: Probes = PROBES) -> float:
    """Compute the kernel velocity S(K_t, K_{t+dt}) / dt, S the :func:`kernel_distance`.

    From Fort et al. 2020, arXiv:2010.15110.

    Parameters
    ----------
    K1, K2 : array or operator (n, n)
        Gram matrices at t and at t + dt.
    dt : float
        Time between them, > 0. In epochs, the velocity is per epoch.
    probes : Probes
        For operators.

    Returns
    -------
    velocity : float

    Raises
    ------
    ValueError
        If ``dt`` is not a finite number > 0, or as in :func:`kernel_distance`.

    Examples
    --------
    >>> kernel_velocity([[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]], dt=0.5)
    2.0
    """
    dt = number("dt", dt, above=0, unit="in epochs")
    distance = kernel_distance(K1, K2, probes=probes)
    velocity = distance / dt
    if not math.isfinite(velocity):
        raise ValueError(f"dt must be long enough for a finite velocity, got {dt!r}")
    return Estimate(velocity, distance.standard_error / dt) if isinstance(distance, Estimate) else velocity


def polar_dynamics(
    K_t: AnyArray, K_start: AnyArray, K_end: AnyArray, *, probes: Probes = PROBES
) -> tuple[float, float]:
    """Compute radius and angle of a kernel on its way through training (Tsilivis & Kempe 2022, arXiv:2210.05577).

    radius = ‖K_t - K_start‖ / ‖K_end - K_start‖ and cos(angle) = ⟨K_t, K_start⟩ / (‖K_t‖ ‖K_start‖), in the
    Frobenius norm. For an eigenspace, pass the matrices truncated to it, Σ_{i in space} λ_i v_i v_iᵀ.

    Parameters
    ----------
    K_t, K_start, K_end : array or operator (n, n)
        Gram matrices now, at the start and at the end of training. Unlike the angle, the radius sees scale.
    probes : Probes
        For operators.

    Returns
    -------
    radius : float
        0 at the start, 1 at the end.
    angle : float
        In radians: [0, π/2] for positive semidefinite matrices.

    Raises
    ------
    ValueError
        If the first and last kernels are equal, or as in :func:`kernel_distance`.

    Examples
    --------
    >>> start, end = [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]
    >>> polar_dynamics(start, start, end)
    (0.0, 0.0)
    >>> [round(v, 6) for v in polar_dynamics(end, start, end)]
    [1.0, 1.570796]
    """
    if are_operators(probes, K_t=K_t, K_start=K_start, K_end=K_end):
        return estimates.polar(K_t, K_start, K_end, probes)
    now, start = checked_pair(K_t=K_t, K_start=K_start)
    end, _ = checked_pair(K_end=K_end, K_start=K_start)
    (walked, own), (length, whole) = _apart(now, start), _apart(end, start)
    if length == 0:
        raise ValueError("K_end equals K_start, so there is no path to measure a radius on")
    radius = walked / length * (own / whole)
    return radius, 2 * math.asin(math.sqrt(kernel_distance(now.K, start.K) / 2))


def _apart(A, B):
    """Return ‖A - B‖ of two Gram matrices in the larger of their units, and that unit."""
    unit = max(A.unit, B.unit)
    return float(np.linalg.norm(A.K * (A.unit / unit) - B.K * (B.unit / unit))), unit


def kernel_alignment(K1: AnyArray, K2: AnyArray, centered: bool = False, *, probes: Probes = PROBES) -> float:
    """Compute the cosine of two kernels, ⟨K1, K2⟩_F / (‖K1‖_F ‖K2‖_F); centred, it is CKA.

    Uncentred: Cristianini et al. 2001. Centred, with H K H in place of K, H = I - 11ᵀ/n: Cortes et al. 2012
    (arXiv:1203.0550), Kornblith et al. 2019 (arXiv:1905.00414).

    Parameters
    ----------
    K1, K2 : array or operator (n, n)
        Symmetric Gram matrices of the same samples.
    centered : bool, default=False
        Ignore the part of the kernels that is constant over the samples.
    probes : Probes
        For operators.

    Returns
    -------
    alignment : float
        In [0, 1] for positive semidefinite matrices, in [-1, 1] for any.

    Raises
    ------
    ValueError
        As in :func:`kernel_distance`, or if a kernel is constant and ``centered``.

    Examples
    --------
    >>> kernel_alignment([[1.0, 0.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 0.0]])
    1.0
    """
    if are_operators(probes, K1=K1, K2=K2):
        return estimates.alignment(K1, K2, probes, centered=flag("centered", centered))
    (K1, norm1, _), (K2, norm2, _) = checked_pair(centered, K1=K1, K2=K2)
    return min(max(float(np.vdot(K1, K2)) / (norm1 * norm2), -1.0), 1.0)


def target_alignment(K: AnyArray, y: AnyArray, centered: bool = False, *, probes: Probes = PROBES) -> float:
    """Compute the alignment of a kernel with its targets, A(K, Y Yᵀ) = ⟨K, Y Yᵀ⟩_F / (‖K‖_F ‖Y Yᵀ‖_F).

    For a vector, yᵀKy / (‖K‖_F ‖y‖²) (Cristianini et al. 2001). Centred as in Baratin et al. 2021,
    arXiv:2008.00938.

    Parameters
    ----------
    K : array or operator (n, n)
        Symmetric Gram matrix.
    y : array (n,) or (n, C)
        Numbers to be aligned with, as they are: a vector such as ±1, or C columns such as one-hot classes. A
        vector of class labels 0, ..., C - 1 would be read as magnitudes: one-hot encode it first.
    centered : bool, default=False
        Align H K H with H Y, H = I - 11ᵀ/n. Uncentred, one-hot targets reward a kernel for being constant.
    probes : Probes
        For operators.

    Returns
    -------
    alignment : float
        In [0, 1] for a positive semidefinite K, in [-1, 1] for any.

    Raises
    ------
    ValueError
        If ``K`` is not square, finite, symmetric and nonzero, ``y`` is not finite or of another length, or one of
        them is zero (after centring, if ``centered``).

    Examples
    --------
    >>> y = [1.0, -1.0]
    >>> target_alignment([[1.0, -1.0], [-1.0, 1.0]], y)
    1.0
    """
    if are_operators(probes, K=K):
        n = checked_operator("K", K).shape[0]
        Y = checked_targets("y", y, n, flag("centered", centered), by_column=False)
        return estimates.target_alignment(K, Y, probes, centered=centered)
    K, norm, _ = checked_gram(K, "K", flag("centered", centered))
    Y = checked_targets("y", y, K.shape[0], centered, by_column=False)
    alignment = float(np.vdot(Y, K @ Y)) / (norm * float(np.linalg.norm(Y.T @ Y)))
    return min(max(alignment, -1.0), 1.0)


def kernel_specialization(
    K_classes: AnyArray,
    Y: AnyArray,
    normalization: str = "kernels",
    centered: bool = False,
    *,
    probes: Probes = PROBES,
) -> AnyArray:
    """Compute how much the kernel of each output prefers its own class, from M(c, d) = A(K_c, y_d y_dᵀ).

    The kernel specialisation matrix of Shan & Bordelon 2021 (arXiv:2105.14301, Eq. 9) divides M by a mean over
    classes. Two normalisations circulate, and their numbers are not comparable: name yours when you report one.

    =============  =================================  ======================================================
    normalization  computes                           diagonal of a specialised kernel
    =============  =================================  ======================================================
    "kernels"      M(c, d) / mean over e of M(e, d)   > 1: target c is met better by its own kernel than by
                                                      the average kernel. Columns have mean 1. As in Eq. 9.
    "targets"      M(c, d) / mean over e of M(c, e)   > 1: kernel c meets its own target better than the
                                                      average target. Rows have mean 1.
    None           M(c, d)                            largest of its row and column.
    =============  =================================  ======================================================

    Under "kernels", equal kernels give 1 everywhere, however unequal the classes.

    Parameters
    ----------
    K_classes : array (n, n, C), or operator (n·C, n·C)
        The class kernel: ``K_classes[:, :, c]`` is the Gram matrix of output c. An operator has the order of
        examples, row i·C + c, and takes two products for each class.
    Y : array (n, C)
        Targets, column d for class d, such as one-hot classes.
    normalization : {"kernels", "targets", None}, default="kernels"
    centered : bool, default=False
        Centre kernels and targets first, as in :func:`target_alignment`.
    probes : Probes
        For operators, whose norms are estimated; standard errors are those of :func:`target_alignment`.

    Returns
    -------
    M : array (C, C)
        Rows: kernels. Columns: targets.

    Raises
    ------
    ValueError
        If ``normalization`` is unknown, shapes do not match, a kernel or a column of ``Y`` is zero or invalid, or
        a mean to divide by is zero.

    Examples
    --------
    >>> import numpy as np
    >>> Y = np.eye(2)
    >>> kernel_specialization(np.stack([np.diag([1.0, 0.0]), np.diag([0.0, 1.0])], axis=-1), Y)
    array([[2., 0.],
           [0., 2.]])
    """
    axes = {"kernels": 0, "targets": 1, None: None}
    check_choice("normalization", normalization, axes)
    flag("centered", centered)
    Y, of_operator = array("Y", Y, kinds=COMPLEX), are_operators(probes, K_classes=K_classes)
    if of_operator:
        n_classes, size = max(1, Y.shape[-1]), checked_operator("K_classes", K_classes).shape[0]
        shape = (size // n_classes, size // n_classes, n_classes) if size % n_classes == 0 else (size, size)
    else:
        K_classes = array("K_classes", K_classes, kinds=COMPLEX)
        shape = K_classes.shape
    if len(shape) != 3 or Y.shape != shape[1:] or 0 in shape:
        raise ValueError(f"K_classes must have shape (n, n, C) and Y (n, C); got {shape} and {Y.shape}")
    n, Y = shape[0], checked_targets("Y", Y, shape[0], centered, by_column=True)
    squares = np.sum(Y * Y, axis=0)
    if not np.all(squares > 0):
        raise ValueError(
            f"column {int(np.argmin(squares))} of Y is {'constant' if centered else 'zero'}, but every class "
            "needs samples"
        )
    rows = []
    for c in range(shape[2]):
        if of_operator:
            rows.append(
                estimates.alignments(estimates.OfClass(K_classes, c, shape[2]), Y, probes, centered=centered)
            )
            continue
        K, norm, _ = checked_gram(K_classes[:, :, c], f"K_classes[:, :, {c}]", centered)
        rows.append(np.sum(Y * (K @ Y), axis=0) / (norm * squares))
    M = np.stack(rows)
    if normalization is None:
        return M
    mean = M.mean(axis=axes[normalization], keepdims=True)
    if not np.all(mean > n * np.finfo(np.float64).eps):
        raise ValueError("a mean alignment is zero, so it cannot be divided by: use normalization=None")
    return M / mean
