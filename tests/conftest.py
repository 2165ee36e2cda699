"""One process per worker, one thread pool each; figures and progress bars stay quiet."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TQDM_MININTERVAL", "1")
