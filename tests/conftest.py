"""One process per worker, one thread pool each; figures and progress bars stay quiet; little is compiled twice."""

import gc
import os
import shutil
import tempfile

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TQDM_MININTERVAL", "1")
# lets scikit-learn run its array API checks too; SciPy reads it when it is imported
os.environ.setdefault("SCIPY_ARRAY_API", "1")
# Most of a small test's time is compilation: programs are optimised less, and kept for the other workers and
# for the processes that tests start.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false")
own_cache = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if own_cache:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="ntkrobust-tests-")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# What JAX traces is many small objects, which the collector would go through again and again.
gc.set_threshold(100_000, 50, 50)


def pytest_unconfigure():
    """The process that made the cache removes it."""
    if own_cache:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
