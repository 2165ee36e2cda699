"""One process per worker, one thread pool each; figures and progress bars stay quiet; compilation is quick."""

import gc
import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TQDM_MININTERVAL", "1")
# lets scikit-learn run its array API checks too; SciPy reads it when it is imported
os.environ.setdefault("SCIPY_ARRAY_API", "1")
# Most of a small test's time is compilation: programs are optimised less, by the emitters that are done sooner.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false")
# What JAX traces is many small objects, which the collector would go through again and again.
gc.set_threshold(100_000, 50, 50)
