"""The command ``ntkrobust``."""

from .command import main as main
from .command import process as process
