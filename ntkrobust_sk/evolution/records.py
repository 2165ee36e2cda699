"""The results of a run as they stand in its ``results.jsonl``: a dict for each task, with the keys of its kind."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class _Record(TypedDict):
    task: str
    seed: int


class _StateRecord(_Record):
    regime: str
    epoch: float


class Scores(TypedDict):
    """Accuracies on the test examples, as they are and under the attack in scoring."""

    clean: float
    robust: float


class KernelMetrics(TypedDict):
    """Numbers of a trace kernel, on clean images and on those attacked through it."""

    clean_effective_rank: float
    clean_participation_ratio: float
    clean_top_mass: float
    clean_target_alignment: float
    clean_centered_target_alignment: float
    adversarial_effective_rank: float
    adversarial_participation_ratio: float
    adversarial_top_mass: float
    adversarial_target_alignment: float
    adversarial_centered_target_alignment: float


class LayerMetrics(TypedDict):
    """The part of one parameter array in a kernel; None where its gradient is zero."""

    share: float
    effective_rank: float | None
    target_alignment: float | None


class ClassMetrics(TypedDict):
    """Numbers of the class kernels."""

    specialization: float
    specialization_matrix: list[list[float]]
    layers: dict[str, LayerMetrics]


class Checkpoint(_StateRecord, Scores, KernelMetrics, ClassMetrics):
    """A state of stage 1: its accuracies and kernels; ``kernels`` has the checksums of the stored matrices."""

    kind: Literal["checkpoint"]
    steps: int
    loss: float | None
    n_train: int
    n_test: int
    n_kernel: int
    validation: NotRequired[float]
    kernels: dict[str, str]
    # of the kernel's numbers, where they are estimates
    standard_errors: NotRequired[dict[str, float]]


class Stopped(_StateRecord):
    """An epoch that early stopping has left out, and the ``best`` one before it."""

    kind: Literal["stopped"]
    best: float


class ClosedForm(_StateRecord, Scores):
    """Kernel regression on the kernel set."""

    kind: Literal["closed form"]


class SecondStage(_StateRecord, Scores):
    """Training on a kernel, or from it; ``robust_restarts`` is robust accuracy under several restarts."""

    kind: Literal["stage 2"]
    dynamics: str
    training: str
    robust_restarts: float


class Transfer(_Record):
    """Accuracies of every model (columns) on the adversarial examples of every model (rows)."""

    kind: Literal["transfer"]
    names: list[str]
    clean: list[float]
    matrix: list[list[float]]


class Features(_StateRecord):
    """The kernel's leading eigenfeatures, scored one by one."""

    kind: Literal["features"]
    eigenvalues: list[float]
    usefulness: list[float]
    robustness: list[float]


class Images(_StateRecord):
    """Images of the classes' directions: whether their gradients point that way, and they look like classes."""

    kind: Literal["images"]
    regression_cosines: list[float]
    regression_correlation: float
    regression_recognised: float
    eigenvector_cosines: list[float]
    eigenvector_correlation: float
    eigenvector_recognised: float


Record = Checkpoint | Stopped | ClosedForm | SecondStage | Transfer | Features | Images
