"""The site's settings: Sphinx with numpydoc, a gallery of examples that are run, and Markdown pages."""

import os
from importlib.metadata import version as version_of

os.environ.setdefault("TQDM_DISABLE", "1")

project = "ntkrobust_sk"
author = "The ntkrobust_sk developers"
copyright = "2026, The ntkrobust_sk developers"
release = version = version_of("ntkrobust_sk")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "results", "sg_execution_times.rst", "**/sg_execution_times.rst"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache"]

autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"^(?!.*plot_)",
    "doc_module": ("ntkrobust_sk",),
    "backreferences_dir": "gallery/backreferences",
    "within_subsection_order": "FileNameSortKey",
    "remove_config_comments": True,
    "show_memory": False,
    "min_reported_time": 30,
    "download_all_examples": False,
}

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "ntkrobust_sk"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


def write_mathml(writer, node) -> None:
    """Write a formula as MathML, which browsers draw by themselves: pages need neither a network nor a script."""
    from docutils.nodes import SkipNode, math_block
    from latex2mathml.converter import convert

    is_block = isinstance(node, math_block)
    formula = convert(node.astext(), display="block" if is_block else "inline")
    writer.body.append(f'<div class="math">{formula}</div>' if is_block else formula)
    raise SkipNode


def skip_what_scikit_learn_documents(app, what, name, thing, skip, options):
    """Leave out the methods that scikit-learn adds to every estimator."""
    return (
        skip or name in ("get_metadata_routing", "set_output") or (name.startswith("set_") and "request" in name)
    )


def setup(app) -> None:
    """Enter both with Sphinx."""
    app.registry.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))
    app.connect("autodoc-skip-member", skip_what_scikit_learn_documents)
