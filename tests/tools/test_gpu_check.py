"""``python -m tools.gpu_check`` without a GPU: every part starts, the time is kept, and results come back into the pages."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import report
from benchmarks.cases import PATCHES, Case
from helpers import backends
from tools import gpu_cases, gpu_check, gpu_report
from tools.gpu_check import Device, Part

ROOT = Path(__file__).parents[2]
GPU = Device("Some GPU", "cuda", "9.0")


def python(code: str, seconds: float = 60) -> Part:
    return Part(seconds, (sys.executable, "-c", code))


def results(folder: Path) -> dict[str, list[str]]:
    """The table of the report: part, then result, seconds and last line."""
    rows = [line.strip("| ").split(" | ") for line in (folder / "some-gpu-check.md").read_text().splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) >= 3 and row[0] not in ("part", "---")}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present")
def test_a_missing_gpu_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="torch finds no GPU"):
        gpu_check.main(["--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_the_gpu_is_asked_in_another_process(monkeypatch):
    """The parts need the memory, and a GPU in exclusive mode serves one process."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", None)
    answer = subprocess.CompletedProcess([], 0, stdout="a warning\nSome GPU\n9\n0\n")
    monkeypatch.setattr(subprocess, "run", lambda words, **_: compile(words[-1], "child", "exec") and answer)
    assert gpu_check.find_device(False) == GPU


@pytest.mark.parametrize(
    "names",
    [
        ("build", "counters", "large"),
        pytest.param(tuple(gpu_check.parts(gpu_check.find_device(True), Path())), marks=pytest.mark.deep),
    ],
    ids=len,
)
def test_every_part_starts_on_a_cpu(names, tmp_path):
    """Without a network, and with an empty home that can't be written to."""
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_CACHE_HOME": "",
        "PIP_NO_INDEX": "1",
        "https_proxy": "127.0.0.1:9",
    }
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tools.gpu_check", "--dry-run", "--out", str(out), *names]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert [line.split(":")[0] for line in result.stdout.splitlines() if ": passed" in line] == [*names]
    if "speed" in names:
        assert {row["impl"] for row in report.load(out / "dry-run.json")} >= {"nn.L1Loss", "PSPL fused, EDSR baseline"}


@pytest.fixture
def background_job():
    """A shell starts its background jobs deaf to SIGINT."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("background_job")
def test_the_time_is_kept(tmp_path):
    """One part hangs and ignores the interrupt, the next takes what is left, the last is not reached."""
    hangs = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('in vain', flush=True); time.sleep(600)"
    gpu_check_parts = {
        "first": python("print('fine')"),
        "hangs": python(hangs, seconds=3),
        "slow": python("import time; print('begun', flush=True); time.sleep(600)", seconds=600),
        "last": python("print('never')"),
    }
    begin, minutes = time.monotonic(), 0.6
    assert gpu_check.check(GPU, gpu_check_parts, tmp_path, minutes) == 1
    assert time.monotonic() - begin < 60 * minutes + gpu_check.PATIENCE_SECONDS
    found = results(tmp_path)
    assert found["first"][0::2] == ["passed", "fine"]
    assert found["hangs"][0::2] == ["stopped after 3 s", "in vain"]
    assert found["slow"][0].startswith("stopped after ")
    assert found["slow"][2] == "KeyboardInterrupt"
    assert found["last"] == ["not reached", "0", ""] or found["last"][0] == "not reached"


def test_a_part_that_fails_and_one_that_is_missing(tmp_path):
    fails = python("print('1 failed | 2 passed', flush=True); raise SystemExit(3)")
    missing = Part(60, ("true",), ("no-such-tool",))
    assert gpu_check.check(GPU, {"tests": fails, "counters": missing, "last": python("")}, tmp_path, 10) == 1
    found = results(tmp_path)
    assert found["tests"][0::2] == ["failed, exit code 3", "1 failed / 2 passed"]
    assert found["counters"][0] == "skipped: no-such-tool is not on the PATH"
    assert found["last"][0] == "passed"


def test_a_failed_build_ends_the_check(tmp_path):
    """The other parts would check an earlier build."""
    assert gpu_check.check(GPU, {"build": python("raise SystemExit(1)"), "speed": python("")}, tmp_path, 10) == 1
    assert results(tmp_path)["speed"][0] == "not reached"


def test_an_interrupt_ends_the_part_and_completes_the_report(tmp_path):
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n"
        "from pathlib import Path\n"
        "from tools.gpu_check import Device, Part, check\n"
        "part = Part(60, (sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(600)'))\n"
        f"sys.exit(check(Device('Some GPU', 'cuda', '9.0'), {{'one': part, 'two': part}}, Path({str(tmp_path)!r}), 10))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    log = tmp_path / "some-gpu-one.log"
    while not (log.exists() and log.read_text()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert {name: row[0] for name, row in results(tmp_path).items()} == {"one": "interrupted", "two": "not reached"}


def test_tools_run_on_a_gpu_only(tmp_path):
    """What a dry run leaves out is put in front of the same command."""
    for name, part in gpu_check.parts(GPU, tmp_path).items():
        words = part.words(GPU)
        assert (words[0] != sys.executable) == (name in ("memcheck", "racecheck", "initcheck", "synccheck", "counters"))
        assert part.words(GPU._replace(kind="cpu")) == [*part.command]
    assert gpu_check.environment(GPU)["TORCH_CUDA_ARCH_LIST"] == "9.0"


@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.deep)])
def test_cases_hold_for_the_emulated_kernel(short):
    if why_not := backends.why_not("emulated"):
        pytest.skip(why_not)
    for case in gpu_cases.cases(short):
        gpu_cases.run(backends.Backend("emulated"), **case)


# ---------------------------------------------------------------- results


def rows() -> list[dict]:
    """As gpu_speed writes them: PSPL takes 0.4 of nn.L1Loss, a step of training as much."""
    base = {
        "device": "Some GPU",
        "torch": "2.11.0",
        "date": "2026-11-30",
        "copy_gb_s": 4000.0,
        "phase": "forward_backward",
    }
    times = {"nn.L1Loss": 1.0, "nn.L1Loss, torch.compile": 0.5, "PSPL fused": 0.4, "PSPL fused, charbonnier": 0.44}
    found = []
    for case in (Case(PATCHES), Case(gpu_report.LARGE), Case(PATCHES, "float16+float32"), Case(PATCHES, training=True)):
        for name, time_ms in (times | {"official formula, eager": 40.0}).items():
            graph = None if case.training or "official" in name else 0.9 * time_ms
            row = base | case._asdict() | {"shape": list(case.shape), "impl": name, "graph_ms": graph, "copy_ms": 0.2}
            found.append(row | {"median_ms": time_ms, "p20_ms": time_ms, "p80_ms": time_ms})
    return found


COUNTERS = """==PROF== Connected to process 1
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","strip_forward","smsp__issue_active.avg.pct_of_peak_sustained_active","%","90.5"
"0","strip_forward","dram__throughput.avg.pct_of_peak_sustained_elapsed","%","n/a"
"0","strip_forward","sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active","%","41.5"
"""


def test_the_prediction_is_confirmed_or_falsified(tmp_path):
    report.save(rows(), tmp_path / "gpu.json")
    (tmp_path / "gpu-counters.csv").write_text(COUNTERS)
    lines = gpu_report.prediction("9.0", tmp_path / "gpu").splitlines()
    assert "| issue slots | 92 % | 90.5 % | confirmed |" in lines
    assert "| FP32 pipe | 77 % | 41.5 % | **falsified** |" in lines
    assert "| DRAM | 44 % |  | not measured |" in lines
    assert "| forward + backward / nn.L1Loss | 0.52 | 0.4 | **falsified** |" in lines
    assert "| forward + backward / compiled nn.L1Loss | 1.26 | 0.8 | **falsified** |" in lines
    assert "| not predicted |" in gpu_report.prediction("10.0", tmp_path / "gpu")
    assert gpu_report.prediction("9.0", tmp_path / "none") == ""


def test_results_are_read_back_into_the_pages(tmp_path):
    """One command writes the tables of README and docs/performance.md, and nothing else of them."""
    (tmp_path / "docs").mkdir()
    pages = {name: (ROOT / name).read_text() for name in ("README.md", "docs/performance.md")}
    for name, text in pages.items():
        (tmp_path / name).write_text(text)
    path = tmp_path / "some-gpu.json"
    path.write_text(json.dumps(rows()))
    assert gpu_report.publish(path, tmp_path) == 0
    for name, marks in (("README.md", report.README_MARKS), ("docs/performance.md", gpu_report.MARKS)):
        before, _, rest = pages[name].partition(marks[0])
        text = (tmp_path / name).read_text()
        assert text.startswith(before + marks[0])
        assert text.endswith(rest.partition(marks[1])[2])
    performance = (tmp_path / "docs" / "performance.md").read_text()
    assert "| 16x3x192x192 float32 | 0.36 ms | 0.40 | 0.80 | 56% | 1.10 | 100 |" in performance
    assert "| 16x3x192x192 float16+float32 | 0.36 ms |" in performance
    assert "on Some GPU, torch 2.11.0" in (tmp_path / "README.md").read_text()
    (tmp_path / "docs" / "performance.md").write_text("no marks")
    with pytest.raises(SystemExit, match="lacks the lines"):
        gpu_report.publish(path, tmp_path)
