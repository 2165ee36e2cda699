"""``python -m ntkrobust_sk``, the command ``ntkrobust``."""

from .cli.command import process

if __name__ == "__main__":
    process()
