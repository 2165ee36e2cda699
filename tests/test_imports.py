"""The package's own structure: imports point one way, optional libraries stay out, public names are documented."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import ntkrobust_sk

PACKAGE = Path(ntkrobust_sk.__file__).parent

# Packages and modules, by levels. Each imports from levels above its own, and within itself without a circle.
LEVELS = """
_validation
_arrays _drawing _files _frames _html _portable
_locks
saving
execution datasets solvers
networks
sklearn_models tangent attacks
tables kernels
training analysis testing targets sklearn_kernels
attribution
estimators
robustness
evolution
displays
reports
cli
__main__
"""
LEVEL = {name: at for at, names in enumerate(LEVELS.split("\n")) for name in names.split()}

# What must stay usable, and be understood, without the other.
NEVER = [("attacks", "kernels"), ("attacks", "tangent"), ("attacks", "estimators")]
WITHOUT_JAX = [
    "solvers",
    *(f"analysis.{part}" for part in ("metrics", "spectra", "estimates", "sketches", "checked")),
    "evolution.claims",
    "evolution.results",
]

# A file that one reads at a sitting.
LINES = 400

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
    "jinja2",
    "pandas",
    "hypothesis",
    "neural_tangents",
]
# Always there, and imported late all the same: together they took a fifth of the time of importing the package.
LATE = ["optax", *(f"sklearn.{part}" for part in ("datasets", "compose", "gaussian_process", "impute", "metrics"))]


def modules() -> dict[str, Path]:
    """Names within the package, such as "attacks.pgd", and files; a package's face has the package's name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path for name, path in found.items() if name}


MODULES = modules()


def imported_modules(source: str, package: str = "") -> set[str]:
    """Modules that a module's source imports from ``ntkrobust_sk``, at its top or inside of a function.

    Imports for annotations alone, under ``TYPE_CHECKING``, are none.
    """
    tree, found = ast.parse(source), set()
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name.split(".", 1) for alias in node.names]
            found |= {(parts + [""])[1] for parts in names if parts[0] == "ntkrobust_sk"}
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if node.module else []
            if node.level == 0:
                if parts[0] != "ntkrobust_sk":
                    continue
                inner = parts[1:]
            else:
                around = package.split(".") if package else []
                inner = around[: len(around) - node.level + 1] + parts
            base = ".".join(inner)
            for alias in node.names:
                name = f"{base}.{alias.name}" if base else alias.name
                found.add(name if name in MODULES or not base else base)
    return {name for name in found if not name.startswith("__")}


def imports_of(name: str) -> set[str]:
    path = MODULES[name]
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    return imported_modules(path.read_text(), package)


@pytest.mark.parametrize(
    "source, package, expected",
    [
        ("import numpy, jax.numpy\nfrom numpy import array", "", set()),
        ("from .pgd import PGD", "attacks", {"attacks.pgd"}),
        ("from . import pgd, apgd", "attacks", {"attacks.pgd", "attacks.apgd"}),
        ("from ..execution.keys import keys_of", "attacks", {"execution.keys"}),
        ("from .._files import read_json", "kernels", {"_files"}),
        ("def late():\n    from ntkrobust_sk.analysis.metrics import top_mass", "", {"analysis.metrics"}),
        ("import ntkrobust_sk.solvers as s", "", {"solvers"}),
        ("from ntkrobust_sk import MLP", "", {"MLP"}),
        ("import ntkrobust_sk", "", {""}),
        ("from .. import __version__", "kernels", set()),
        ("if TYPE_CHECKING:\n    from .tasks import Measurements", "evolution", set()),
    ],
)
def test_every_form_of_import_is_seen(source, package, expected):
    assert imported_modules(source, package) == expected


def test_everything_has_its_level():
    rooms = {name.split(".")[0] for name in MODULES}
    assert rooms - set(LEVEL) == set(), f"put them into LEVELS in {__file__}, below everything that they import"
    assert set(LEVEL) - rooms == set(), f"take them out of LEVELS in {__file__}: there are no such packages"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_up_the_levels_only(name):
    room = name.split(".")[0]
    others = {other for other in imports_of(name) if other.split(".")[0] != room}
    below = sorted(other for other in others if LEVEL.get(other.split(".")[0], len(LEVEL)) >= LEVEL[room])
    assert not below, (
        f"{name} imports {below}, which LEVELS in {__file__} does not list above it. Import names of the package "
        "from their modules; move what is needed to a level above both."
    )


@pytest.mark.slow
def test_no_imports_go_round_in_a_circle():
    done, circles = set(), []

    def follow(name, way):
        if name in way:
            circles.append([*way[way.index(name) :], name])
        elif name not in done:
            for other in sorted(imports_of(name) & set(MODULES)):
                follow(other, [*way, name])
            done.add(name)

    for name in MODULES:
        follow(name, [])
    assert circles == []


@pytest.mark.parametrize("room, other", NEVER)
def test_attacks_know_only_scores(room, other):
    within = [name for name in MODULES if name.split(".")[0] == room]
    assert [name for name in within if other in {found.split(".")[0] for found in imports_of(name)}] == []


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith(tuple(WITHOUT_JAX))])
def test_what_computes_on_the_host_does_not_import_jax(name):
    tree = ast.parse(MODULES[name].read_text())
    found = {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    found |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 0}
    assert "jax" not in found


@pytest.mark.parametrize("name", MODULES)
def test_no_file_is_longer_than_one_reads_at_a_sitting(name):
    assert len(MODULES[name].read_text().splitlines()) <= LINES


@pytest.mark.slow
def test_importing_the_package_imports_neither_optional_libraries_nor_the_checks_for_users():
    unwanted = [*OPTIONAL, *LATE, "ntkrobust_sk.testing"]
    # scikit-learn imports pandas where it is installed
    code = (
        "import sys, sklearn.base; theirs = set(sys.modules)\nimport ntkrobust_sk as ours\n"
        # one of scikit-learn's Gaussian process kernels, which imports these
        "[getattr(ours, name) for name in ours.__all__ if name != 'NTKKernel']\n"
        f"print(*sorted(set({unwanted}) & (set(sys.modules) - theirs)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_bare_import_waits_for_what_is_used():
    code = "import sys, ntkrobust_sk; ntkrobust_sk.__version__; print({'jax', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()"]


PUBLIC = [name for name in ntkrobust_sk.__all__ if not inspect.ismodule(getattr(ntkrobust_sk, name))]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_exists_and_is_documented(name):
    thing = getattr(ntkrobust_sk, name)
    own = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert own and len(own.split()) > 3, f"{name} has no docstring"
    assert not own.startswith(f"{name}("), f"the docstring of {name} is the one that Python makes up"


@pytest.mark.parametrize("name", [n for n in PUBLIC if inspect.isclass(getattr(ntkrobust_sk, n))])
def test_every_public_method_is_documented(name):
    cls = getattr(ntkrobust_sk, name)
    own = {m: f for m, f in vars(cls).items() if not m.startswith("_") and inspect.isfunction(f)}
    assert [m for m in own if not inspect.getdoc(getattr(cls, m))] == []


def test_exported_functions_are_annotated():
    exported = {
        alias.name
        for name, path in MODULES.items()
        if path.stem == "__init__"
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    functions = []
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name in exported:
                functions.append((name, node, [*node.args.args, *node.args.kwonlyargs]))
            if isinstance(node, ast.ClassDef) and node.name in exported:
                methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
                public = [m for m in methods if m.name in ("__init__", "__call__") or not m.name.startswith("_")]
                functions += [(name, m, [*m.args.args[1:], *m.args.kwonlyargs]) for m in public]
    assert len(functions) > 200
    bare = [
        (name, function.name)
        for name, function, given in functions
        if any(one.annotation is None for one in given)
        or (function.returns is None and function.name != "__init__")
    ]
    assert bare == []


@pytest.mark.parametrize("name", MODULES)
def test_wrong_choices_are_told_of_in_one_wording(name):
    """Errors about choices are made by ``_validation.unknown`` alone; docstrings show what it says."""
    strings = [n.value for n in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(n, ast.Constant)]
    wordings = ("must be one of", "; known are ", "choose from")
    own = [s for s in strings if isinstance(s, str) and "ValueError: " not in s and any(w in s for w in wordings)]
    assert own == [] or name == "_validation.values"


def test_no_file_is_named_like_something_that_its_package_exports():
    """The package's attribute would be one or the other, by the order of imports."""
    clashes = [
        name
        for name, path in MODULES.items()
        if path.stem == "__init__" and name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if f"{name}.{alias.name}" in MODULES
    ]
    assert clashes == []
