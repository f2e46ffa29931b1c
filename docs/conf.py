"""Sphinx configuration: ``sphinx-build -W -n docs docs/_build`` builds the pages and the API reference from the docstrings."""

from importlib.metadata import version

project = "pspl_cuda"
author = copyright = "The pspl_cuda developers"
release = version("pspl_cuda")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
exclude_patterns = ["_build", "README.md"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2

# Annotations stay in the signatures; the docstrings describe the arguments.
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
napoleon_custom_sections = ["Shape"]
# Classes of torch and Python, whose documentation is not linked.
nitpick_ignore_regex = [("py:class", r"(torch\.|collections\.|optional|Tensor|nn\.).*")]

html_theme = "furo"
html_title = f"pspl_cuda {release}"
