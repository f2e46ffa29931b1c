"""The code blocks of docs/frameworks.md, which the tests of the plug-ins execute."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"


def snippet(heading: str, language: str, index: int = 0) -> str:
    """The code block of ``language`` under ``heading``, or one of several."""
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[index]
