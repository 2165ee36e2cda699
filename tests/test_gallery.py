"""The gallery's examples keep its rules; the fast half of them runs here, and ``make docs`` runs them all."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = {
    path.stem.removeprefix("plot_"): path
    for path in sorted((Path(__file__).parents[1] / "examples").glob("plot_*.py"))
}
RUN_HERE = [
    "attribution",
    "boundary",
    "broken_kernel",
    "certificates",
    "fewer_digits",
    "frame_pipeline",
    "gram_on_disk",
    "kernel_of_many",
    "nearest_points",
    "robust_overfitting",
    "transfer",
]
# The shortest are in `make test`, the others in `make sweep`.
QUICK = {"broken_kernel", "nearest_points"}
# Runs for longer than it compiles: as a user runs it, without the tests' compiler settings.
LONG = {"certificates"}
# The slower half, which is left to `make docs`, and what takes its time.
LEFT_OUT = {
    "evolution": "trains six networks",
    "flax_layers": "compiles a network with batch norm twice",
    "grid_search": "attacks thirty kernel machines",
    "infinite_width": "draws 32 networks of four widths",
    "layers_of_a_kernel": "attacks ten kernel machines",
    "norms": "compiles four attacks",
    "robustness_curves": "attacks a kernel machine at five radii",
    "sklearn_on_gram": "attacks three support vector machines",
    "solvers": "solves 36 systems",
    "spectrum": "attacks twenty eigenfeatures, draws twenty images",
    "tangent_features": "takes features of 100,000 points",
    "uncertainty": "compiles three attacks on kernel machines",
}


def test_each_example_runs_here_or_is_left_out_for_a_reason():
    assert sorted([*RUN_HERE, *LEFT_OUT]) == sorted(EXAMPLES)
    assert len(RUN_HERE) >= len(EXAMPLES) // 2


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_has_a_title_and_uses_public_names(name):
    text = EXAMPLES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    tree = ast.parse(text)
    title = re.fullmatch(r"\n(.+)\n(=+)\n\n(.+\n)+", ast.get_docstring(tree, clean=False) or "")
    assert title is not None and len(title[1]) == len(title[2])
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    assert not [part for path in [*modules, *names] for part in path.split(".") if part.startswith("_")]
    # what stands deeper in the package than its parts is no promise
    assert not [module for module in modules if re.match(r"ntkrobust_sk\.\w+\.", module)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.sweep) for name in RUN_HERE]
)
def test_an_example_runs_without_a_warning(name, tmp_path):
    environment = {**os.environ, "MPLBACKEND": "Agg", "TQDM_DISABLE": "1"}
    environment.pop("DISPLAY", None)
    if name in LONG:
        environment.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [sys.executable, EXAMPLES[name]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
