"""The CUDA kernels compile for every architecture without warnings and without torch, within limits on what they use.

``python -m tools.cuda_resources`` prints the numbers.
"""

from __future__ import annotations

import re

import pytest

from tools import cuda_resources

needs_nvcc = pytest.mark.skipif(cuda_resources.find_tool("nvcc") is None, reason="there is no nvcc")
# cuobjdump calls nvdisasm.
needs_cuobjdump = pytest.mark.skipif(
    any(cuda_resources.find_tool(tool) is None for tool in ("cuobjdump", "nvdisasm")),
    reason="there is no cuobjdump with nvdisasm",
)

ARCHITECTURES = cuda_resources.ARCHITECTURES

# Four blocks of 128 threads share the 65536 registers of a multiprocessor.
MAX_REGISTERS = 128


def test_kernels_know_nothing_of_torch():
    """Only csrc/bindings includes torch: everything below compiles without it."""
    csrc = cuda_resources.CSRC
    files = [*csrc.glob("pspl_*.h"), *csrc.rglob("cuda/**/*.cu*"), *csrc.glob("cuda/*.h"), *csrc.glob("cpu/*")]
    assert len(files) > 15
    for file in files:
        assert not re.search(r"#\s*include\s*[<\"](torch|ATen|c10|bindings|\.\./bindings)", file.read_text()), file


@pytest.fixture(scope="module")
def costs():
    return cuda_resources.resources()


@pytest.mark.deep
@needs_nvcc
def test_every_kernel_compiles_for_every_architecture(costs):
    """Without warnings, or the fixture fails. The names are those that the launchers ask for, so none is forgotten."""
    for kernel, by_architecture in costs.items():
        assert set(by_architecture) == set(cuda_resources.ARCHITECTURES), kernel
    assert {kernel.split("<")[0] for kernel in costs} == {"strip_forward", "generic_forward", "backward"}
    for sr in ("float", "__half", "__nv_bfloat16"):
        for hr in {"float", sr}:
            for work in ("kL1", "kL1Stats", "kDistance"):
                assert f"strip_forward<{sr}, {hr}, 5, kUnit, {work}>" in costs


@pytest.mark.deep
@needs_nvcc
def test_nothing_spills(costs):
    """A register that goes to memory and back in the inner loop costs more than the instruction that it was to save."""
    spilling = {
        f"{kernel} for sm_{architecture}": cost
        for kernel, by_architecture in costs.items()
        for architecture, cost in by_architecture.items()
        if cost.spills or cost.stack
    }
    assert not spilling


@pytest.mark.deep
@needs_nvcc
def test_training_kernels_fit_four_times(costs):
    """The kernels of the common training step leave room for four blocks on a multiprocessor."""
    training = {kernel: costs[kernel] for kernel in costs if re.search(r" kUnit, (kL1|kDistance)>", kernel)}
    assert len(training) == 10
    for kernel, by_architecture in training.items():
        assert max(cost.registers for cost in by_architecture.values()) <= MAX_REGISTERS, kernel


@pytest.mark.deep
@needs_nvcc
@needs_cuobjdump
@pytest.mark.parametrize("kernel", cuda_resources.LIMITS)
def test_instructions_per_pixel(kernel, capsys):
    """The loops that training spends its time in do not grow, on any architecture."""
    loops = {architecture: cuda_resources.steady_state(kernel, architecture) for architecture in ARCHITECTURES}
    limits = dict(zip(ARCHITECTURES, cuda_resources.LIMITS[kernel], strict=True))
    with capsys.disabled():
        found = ", ".join(f"sm_{architecture} {loop.instructions:g}" for architecture, loop in loops.items())
        print(f"\n{kernel}: {found} instructions per pixel", end=" ")
    too_long = {a: loop.instructions for a, loop in loops.items() if loop.instructions > limits[a]}
    assert not too_long
    # 4 moments x 11 taps x 2 directions are the least that the right loop can have.
    assert all(loop.fp32 >= 88 for loop in loops.values())


@pytest.mark.deep
@needs_nvcc
@needs_cuobjdump
def test_statistics_cost_little():
    """At most 4 % on top of the training loop for sm_90."""
    without, with_stats = (
        cuda_resources.steady_state(f"strip_forward<float, float, 5, kUnit, {work}>") for work in ("kL1", "kL1Stats")
    )
    assert with_stats.instructions <= 1.04 * without.instructions


@pytest.mark.deep
@needs_nvcc
@needs_cuobjdump
def test_sm_100_has_packed_multiply_adds():
    """Half as many multiply-adds of the blur as elsewhere, which have none that are packed."""
    kernel = "strip_forward<float, float, 5, kUnit, kL1>"
    for architecture in ARCHITECTURES:
        packed = cuda_resources.steady_state(kernel, architecture).kinds["FFMA2"]
        assert packed == (44 if architecture == 100 else 0)


@pytest.mark.deep
@needs_nvcc
@pytest.mark.parametrize("gpu", cuda_resources.GPUS, ids=lambda gpu: gpu.name)
def test_plan_knows_the_resident_blocks(costs, gpu):
    """The registers and shared memory of the compiled kernel leave room for the blocks that strip_plan.h counts on."""
    kernel = "strip_forward<float, float, 5, kUnit, kL1>"
    shared = cuda_resources.shared_bytes()["strip_forward<5>"]
    warps = cuda_resources.resident_warps(gpu, costs[kernel][gpu.architecture], shared)
    assert warps == 16


# ---------------------------------------------------------------- the gate itself


@needs_nvcc
def test_a_warning_is_an_error(tmp_path):
    source = tmp_path / "warned.cu"
    source.write_text("__global__ void kernel(int* out) { int unused; *out = 1; }")
    with pytest.raises(RuntimeError, match="unused"):
        cuda_resources.compile_all([source])


@needs_nvcc
def test_spills_are_seen(tmp_path):
    """More live values than registers."""
    source = tmp_path / "spilling.cu"
    source.write_text(
        """
        __global__ void __launch_bounds__(1024) spilling(float* x) {
          float v[128];
          #pragma unroll
          for (int i = 0; i < 128; ++i) v[i] = x[i * 1024 + threadIdx.x];
          __syncthreads();
          #pragma unroll
          for (int i = 0; i < 128; ++i) x[((i * 7) % 128) * 1024 + threadIdx.x] = v[i] * v[(i * 13 + 1) % 128];
        }
        """
    )
    log = cuda_resources.compile_all([source])["spilling"].with_suffix(".log")
    costs = cuda_resources.parse_log(log.read_text())
    assert {architecture for _, architecture in costs} == set(cuda_resources.ARCHITECTURES)
    assert all(cost.registers <= 64 and cost.spills > 0 and cost.stack > 0 for cost in costs.values())
