"""``python -m ntkrobust_sk``, the command ``ntkrobust``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
