"""Attacks: small changes of the input that a model does not survive. They know only ``x -> scores``."""

from .apgd import APGD as APGD
from .autoattack import AutoAttack as AutoAttack
from .autoattack import AutoAttackReport as AutoAttackReport
from .boxes import Box as Box
from .each import Each as Each
from .entry import require_attack as require_attack
from .fab import FAB as FAB
from .fmn import DDN as DDN
from .fmn import FMN as FMN
from .losses import example_losses as example_losses
from .minimum_norm import MinimumNorm as MinimumNorm
from .norms import NORMS as NORMS
from .pgd import FGSM as FGSM
from .pgd import NFGSM as NFGSM
from .pgd import PGD as PGD
from .pgd import Clean as Clean
from .sigma_zero import SigmaZero as SigmaZero
from .skeleton import Attack as Attack
from .skeleton import Outcome as Outcome
from .square import Square as Square
from .tiled import attack_in_tiles as attack_in_tiles
