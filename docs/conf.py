"""Sphinx: how the pages of this folder become a site."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

project = "cutmix_jax"
author = "The cutmix_jax authors"
copyright = "the cutmix_jax authors, MIT license"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # ships MathJax, so that pages need no network
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "evidence/*"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_custom_sections = [("Call", "params_style")]
default_role = "literal"  # `names` in docstrings
# Types of other libraries: their pages are on the network, and this site works without one.
nitpick_ignore_regex = [
    ("py:.*", r"(?!cutmix_jax).*"),
]

smartquotes = False
html_theme = "furo"
html_title = "cutmix_jax"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp"
