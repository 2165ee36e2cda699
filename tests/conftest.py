"""One process per worker, one thread pool each; figures and progress bars stay quiet."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TQDM_MININTERVAL", "1")
# lets scikit-learn run its array API checks too; SciPy reads it when it is imported
os.environ.setdefault("SCIPY_ARRAY_API", "1")
