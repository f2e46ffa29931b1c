"""Checks an installation with CUDA kernels on a machine without a GPU: ``python tests/packaging/check_cuda_build.py``.

It is not a pytest file: CI runs it in a separate environment with a CUDA build of torch.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

import pspl_cuda
from pspl_cuda import ops

OPERATORS = ("loss", "map", "scale", "scale_")


def find_cuobjdump() -> str | None:
    """From the PATH, or from PyPI's nvidia-cuda-cuobjdump."""
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/**/bin/cuobjdump"))
    return shutil.which("cuobjdump") or next(map(str, packaged), None)


def main() -> None:
    info = pspl_cuda.backend_info()
    print(info)
    assert torch.version.cuda is not None, "this torch is not a CUDA build"
    assert info["cuda"]["available"], info["cuda"]["reason"]
    for operator in OPERATORS:
        for key in ("CPU", "CUDA"):
            found = torch._C._dispatch_has_kernel_for_dispatch_key(f"pspl_cuda::{operator}", key)
            assert found, f"{operator} has no {key} kernel"

    library = next(Path(ops._PACKAGE).glob("_cuda.*"))
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        print("cuobjdump not found: architectures not checked", file=sys.stderr)
    else:
        listed = subprocess.run([cuobjdump, "--list-elf", library], capture_output=True, text=True, check=True).stdout
        found = set(re.findall(r"\.sm_(\d+)\.cubin", listed))
        wanted = {architecture.removesuffix("+PTX").replace(".", "") for architecture in info["cuda"]["architectures"]}
        assert found == wanted, f"the library holds {sorted(found)}, but {sorted(wanted)} were asked for"
        print(f"architectures: {', '.join(sorted(found, key=int))}")

    sr, hr = torch.rand(2, 3, 32, 40), torch.rand(2, 3, 32, 40)
    fused = pspl_cuda.pspl_loss(sr, hr, 1.0, backend="cpu")
    torch.testing.assert_close(fused, pspl_cuda.pspl_loss(sr, hr, 1.0, backend="reference"), rtol=2e-6, atol=0)
    print("the CUDA build is fine")


if __name__ == "__main__":
    main()
