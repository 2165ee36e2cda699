"""One process per worker, one thread pool each; figures and progress bars stay quiet; compilation is quick."""

import gc
import os
import signal
import subprocess
import sys

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TQDM_MININTERVAL", "1")
# lets scikit-learn run its array API checks too; SciPy reads it when it is imported
os.environ.setdefault("SCIPY_ARRAY_API", "1")
# Most of a small test's time is compilation: programs are hardly optimised, by the emitters that are done sooner,
# each in one piece. What runs for long has a process of its own, without these.
QUICK_COMPILATION = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def known_flags(flags):
    """Those flags that this XLA knows: an unknown one ends a process, so they are tried in one of its own."""

    def starts(some):
        code = "import jax; jax.devices('cpu')"
        env = {**os.environ, "XLA_FLAGS": " ".join(some)}
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True).returncode == 0

    return flags if starts(flags) else tuple(flag for flag in flags if starts([flag]))


# Workers of pytest-xdist find what their parent has set.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = " ".join(known_flags(QUICK_COMPILATION))
# What JAX traces is many small objects, which the collector would go through again and again.
gc.set_threshold(100_000, 50, 50)

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# Modules of trusted arrays, whose annotated shapes are checked at each call. Elsewhere bad input comes in on
# purpose, and has errors of its own.
SHAPES_CHECKED = [
    f"ntkrobust_sk.{module}"
    for module in ("attacks.losses", "attacks.norms", "attacks.planes", "tangent.gradients", "kernels.tiles")
]
install_import_hook(SHAPES_CHECKED, "beartype.beartype")

from ntkrobust_sk.kernels import abstract_features, plan, whole  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """What a module has compiled goes with it: a process may map only so many pieces of memory."""
    yield
    for cached in (abstract_features.compiled_features, plan._plan, whole._compiled):
        cached.cache_clear()
    jax.clear_caches()
    gc.collect()


def pytest_collection_finish():
    """Spares the collector what has been imported: it stays to the end."""
    gc.collect()
    gc.freeze()


# Fixtures that run an experiment, the demo or all checks of a GPU: what needs them is slow.
WHOLE_RUNS = {"finished", "result", "tiny", "toy"}


def pytest_collection_modifyitems(items):
    """The longest test first, so that no worker is left alone with it at the end."""
    for item in items:
        if item.get_closest_marker("sweep") or WHOLE_RUNS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.name != "test_the_example_runs_as_written")


@pytest.fixture
def nothing_waits():
    """Ends a test that waits for a pipe to be written to."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
