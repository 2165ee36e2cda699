"""Attacks: small changes of the input that a model does not survive. They know only ``x -> scores``."""

from .apgd import APGD
from .autoattack import AutoAttack
from .entry import require_attack
from .fab import FAB
from .fmn import DDN, FMN
from .losses import example_losses
from .norms import NORMS
from .pgd import FGSM, NFGSM, PGD, Clean
from .sigma_zero import SigmaZero
from .square import Square
from .threat_model import Box
from .tiled import attack_in_tiles

__all__ = [
    "APGD",
    "DDN",
    "FAB",
    "FGSM",
    "FMN",
    "NFGSM",
    "NORMS",
    "PGD",
    "AutoAttack",
    "Box",
    "Clean",
    "SigmaZero",
    "Square",
    "attack_in_tiles",
    "example_losses",
    "require_attack",
]
