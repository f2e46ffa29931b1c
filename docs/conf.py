"""Sphinx configuration: ``sphinx-build -W -n docs docs/_build`` builds the pages and the API reference from the docstrings."""

from importlib import metadata

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project = "pspl_cuda"
author = copyright = "The pspl_cuda developers"
release = metadata.version("pspl_cuda")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
exclude_patterns = ["_build", "README.md"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
# Links to files outside of docs/ become text. tests/docs checks all links.
suppress_warnings = ["myst.xref_missing"]

# Annotations stay in the signatures; the docstrings describe the arguments.
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
napoleon_custom_sections = ["Shape"]
# Classes of torch and Python, whose documentation is not linked.
nitpick_ignore_regex = [("py:class", r"(torch\.|collections\.|optional|Tensor|nn\.).*")]

html_theme = "furo"
html_title = f"pspl_cuda {release}"

# Formulas become MathML when the site is built: no script from another server.
html_math_renderer = "mathml"


def _inline_math(translator, node):
    translator.body.append(convert(node.astext()))
    raise SkipNode


def _block_math(translator, node):
    # Padding, because the theme's container would otherwise show a scroll bar for tall brackets.
    translator.body.append(f'<div style="padding: 0.5em 0">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", inline_renderers=(_inline_math, None), block_renderers=(_block_math, None))
