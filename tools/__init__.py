"""Tools of developers and owners of a GPU: ``python -m tools.NAME`` in the root of the repository."""

import sys
from pathlib import Path

# helpers, emulation and networks, which pytest has from pyproject.toml.
sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("tests", "tests/cuda", "experiments")]
