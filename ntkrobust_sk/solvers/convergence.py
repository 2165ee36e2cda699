"""What a solver says of its answer: the one residual, and the one warning where it has not converged."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

from sklearn.exceptions import ConvergenceWarning


@dataclass(frozen=True)
class SolveReport:
    """What a solver did, beside its answer.

    Attributes
    ----------
    solver : callable
        Which one, with its parameters.
    n_iter : int
        Iterations or epochs; 0 of a direct solver.
    residual : float or None
        The largest ‖A x - b‖ / ‖b‖ of all right-hand sides, of the equations that the solver solves; None of a
        direct solver, whose backward error was within bounds.
    converged : bool
        Whether the residual is within the solver's tolerance, or within rounding.
    ridge : float
        λ, which ``alpha`` stands for.
    detail : str
        What else there is to be said, such as how much of the matrix a preconditioner has.

    Examples
    --------
    >>> SolveReport("cg", 12, 3e-7, True)
    SolveReport(solver='cg', n_iter=12, residual=3e-07, converged=True, ridge=0.0, detail='')
    """

    solver: Any
    n_iter: int = 0
    residual: float | None = None
    converged: bool = True
    ridge: float = 0.0
    detail: str = ""


def together(reports: list[SolveReport]) -> SolveReport:
    """Return one report of several systems: the worst residual, and the most iterations."""
    residuals = [report.residual for report in reports if report.residual is not None]
    return replace(
        reports[0],
        n_iter=max(report.n_iter for report in reports),
        residual=max(residuals) if residuals else None,
        converged=all(report.converged for report in reports),
    )


def warn_unless_converged(report: SolveReport, advice: str, stacklevel: int = 2) -> None:
    """Warn of a residual above the tolerance; the answer is kept.

    Parameters
    ----------
    report : SolveReport
    advice : str
        What to do about it.
    stacklevel : int, default=2
        As of :func:`warnings.warn`, counted from the caller.
    """
    if report.converged:
        return
    warnings.warn(
        f"{type(report.solver).__name__} has not converged: after {report.n_iter} iterations the relative "
        f"residual is {report.residual:.1e}, above tol={report.solver.tol:.1e}. The result is kept as it is. "
        f"{advice}",
        ConvergenceWarning,
        stacklevel=stacklevel + 1,
    )
