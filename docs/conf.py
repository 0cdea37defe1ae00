"""Sphinx configuration."""

import gdml

project = "gdml"
author = "The gdml developers"
copyright = "2026, The gdml developers"
version = release = gdml.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = f"gdml {version}"

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Warns", "params_style")]
default_role = "code"


def escape_group_orders(app, what, name, obj, options, lines):
    """|S|, |T| and |Q|, orders of groups, are no substitutions."""
    for order in "STQ":
        lines[:] = [line.replace(f"|{order}|", rf"\|{order}\|") for line in lines]


def setup(app):
    app.connect("autodoc-process-docstring", escape_group_orders)
