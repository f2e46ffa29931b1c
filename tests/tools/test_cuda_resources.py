"""tools/cuda_resources.py, as far as it needs no toolkit."""

from __future__ import annotations

from tools.cuda_resources import find_tool


def test_a_tool_of_a_package_behind_a_pth_file(tmp_path, monkeypatch):
    """Every folder of sys.path may hold NVIDIA's packages: those of .pth files, and the user's."""
    tool = tmp_path / "nvidia" / "cu13" / "bin" / "a_tool_of_no_toolkit"
    assert find_tool(tool.name) is None
    tool.parent.mkdir(parents=True)
    tool.touch(0o755)
    monkeypatch.syspath_prepend(tmp_path)
    assert find_tool(tool.name) == str(tool)
