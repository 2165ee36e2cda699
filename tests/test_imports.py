"""The package's own structure: imports point one way, optional libraries stay out, public names are documented."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import ntkrobust_sk

PACKAGE = Path(ntkrobust_sk.__file__).parent

# Every module, below everything that it imports. A new module takes the highest place it can.
ORDER = [
    "_backend",
    "_validation",
    "_interrupts",
    "_files",
    "_locks",
    "devices",
    "_portable",
    "keys",
    "datasets",
    "networks",
    "adapters",
    "resnet",
    "neural_tangents_bridge",
    "factors",
    "convolutions",
    "structure",
    "tangent",
    "kernels",
    "projections",
    "proof",
    "plan",
    "fingerprint",
    "store",
    "gram",
    "predictors",
    "testing",
    "solvers",
    "norms",
    "balls",
    "frames",
    "loops",
    "entry",
    "attacks",
    "apgd",
    "square",
    "fab",
    "fmn",
    "autoattack",
    "training",
    "metrics",
    "estimators",
    "trainer",
    "machines",
    "features",
    "sklearn_arrays",
    "sklearn_linear",
    "sklearn_kernel_machines",
    "sklearn_gaussian_processes",
    "sklearn_transformers",
    "sklearn_guard",
    "sklearn_models",
    "blackbox",
    "columns",
    "subjects",
    "scoring",
    "evaluation",
    "checks",
    "smoothing",
    "splits",
    "checkpoints",
    "rundir",
    "stages",
    "eigenfeatures",
    "adversarial",
    "measurements",
    "evolution_result",
    "evolution",
    "displays",
    "claims",
    "report",
    "demo",
    "cli",
    "__main__",
]

# Imported by those who use them, at the moment of use.
OPTIONAL = [
    "matplotlib",
    "cupy",
    "flax",
    "equinox",
    "haiku",
    "dask",
    "zarr",
    "safetensors",
    "pandas",
    "hypothesis",
    "neural_tangents",
]


def imported_modules(source: str) -> set[str]:
    """Modules of the package that a module's source imports, at its top or inside of a function."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {(parts + [""])[1] for parts in names if parts[0] == "ntkrobust_sk"}
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            if node.level == 0 and parts[0] != "ntkrobust_sk":
                continue
            inner = parts[1:] if node.level == 0 else parts
            found |= {inner[0]} if inner and inner[0] else {alias.name for alias in node.names}
    return {name for name in found if not name.startswith("__")}


def modules() -> list[str]:
    return sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize(
    "source, expected",
    [
        ("import numpy, jax.numpy\nfrom numpy import array", set()),
        ("from .gram import gram", {"gram"}),
        ("from . import gram, kernels", {"gram", "kernels"}),
        ("def late():\n    from ntkrobust_sk.metrics import top_mass", {"metrics"}),
        ("import ntkrobust_sk.solvers as s", {"solvers"}),
        ("from ntkrobust_sk import MLP", {"MLP"}),
        ("import ntkrobust_sk", {""}),
        ("from . import __version__", set()),
    ],
)
def test_every_form_of_import_is_seen(source, expected):
    assert imported_modules(source) == expected


def test_every_module_has_its_place_in_the_order_of_imports():
    assert len(ORDER) == len(set(ORDER))
    missing = set(modules()) - set(ORDER)
    assert not missing, f"put {sorted(missing)} into ORDER in {__file__}, below everything that they import"
    gone = set(ORDER) - set(modules())
    assert not gone, f"take {sorted(gone)} out of ORDER in {__file__}: there are no such modules"


@pytest.mark.parametrize("module", modules())
def test_imports_point_up_the_list_only(module):
    place = ORDER.index(module) if module in ORDER else len(ORDER)
    imported = imported_modules((PACKAGE / f"{module}.py").read_text())
    below = sorted(name for name in imported if name not in ORDER[:place])
    assert not below, (
        f"{module} imports {below}, which ORDER in {__file__} does not list above it. If they are modules that do "
        f"not import {module}, directly or not, move {module} below them there. If they are names of the package, "
        "import them from their modules. Otherwise move what is needed to a module above both."
    )


def test_importing_the_package_imports_neither_optional_libraries_nor_the_checks_for_users():
    unwanted = [*OPTIONAL, "ntkrobust_sk.testing"]
    # scikit-learn imports pandas where it is installed
    code = (
        "import sys, sklearn.base; theirs = set(sys.modules); import ntkrobust_sk; "
        f"print(*sorted(set({unwanted}) & (set(sys.modules) - theirs)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_public_names_are_all_that_the_package_imports():
    public = ntkrobust_sk.__all__
    assert len(public) == len(set(public))
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert set(public) == imported


@pytest.mark.parametrize("name", ntkrobust_sk.__all__)
def test_every_public_name_exists_and_is_documented(name):
    thing = getattr(ntkrobust_sk, name)
    own = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert own and len(own.split()) > 3, f"{name} has no docstring"
    assert not own.startswith(f"{name}("), f"the docstring of {name} is the one that Python makes up"


@pytest.mark.parametrize("name", [n for n in ntkrobust_sk.__all__ if inspect.isclass(getattr(ntkrobust_sk, n))])
def test_every_public_method_is_documented(name):
    cls = getattr(ntkrobust_sk, name)
    own = {m: f for m, f in vars(cls).items() if not m.startswith("_") and inspect.isfunction(f)}
    assert [m for m in own if not inspect.getdoc(getattr(cls, m))] == []
