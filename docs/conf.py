"""The documentation as a site: `sphinx-build -W --keep-going -b html docs BUILD` (pip install -e '.[docs,serve]')."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import colm_jax

for _name in colm_jax.__all__:  # imported on first use; autodoc documents what is there
    setattr(colm_jax, _name, getattr(colm_jax, _name))

project = "colm-jax"
author = "the colm-jax authors"
copyright = author
version = release = colm_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "docs._ext.api_reference",
    "docs._ext.command_pages",
    "docs._ext.source_pages",
]
exclude_patterns = ["tables", "_ext"]

# Pages are Markdown that also reads well in the repository: headings have GitHub's anchors, and the first level is the
# page's title.
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]
smartquotes_action = "D"  # dashes alone: quotes stay as they are typed
# Blocks without a language hold file lines, messages and trees of files.
highlight_language = "text"
suppress_warnings = ["myst.header"]

# The reference: every name of a public module's `__all__`, in its order. Docstrings are in Google's style, with names
# in single backticks.
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
default_role = "py:obj"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

# `sphinx-build -b linkcheck docs BUILD` checks links to other sites; tests/test_links.py checks all others.
linkcheck_anchors = False
linkcheck_timeout = 20
linkcheck_retries = 2

html_theme = "furo"
html_title = "colm-jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
