"""``python -m benchmarks``: valid rows, no times for inaccurate implementations, a reason for each skip, no lost rows.

No time is asserted.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import pspl_cuda
from benchmarks import __main__ as command
from benchmarks import check, implementations, machine, memory, report, timing
from benchmarks.cases import MIXED, MIXED_HALF, OTHERS, PATCHES, SIZES, Case, images, select
from benchmarks.implementations import BUDGET, Implementation, Tolerance, textbook

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
L1 = Tolerance(None, loss=1e-6, gradient=1e-6)
SIZE = "1x3x20x24"
CASE = Case((1, 3, 20, 24))
PNG = b"\x89PNG\r\n"


@pytest.fixture
def quick(monkeypatch):
    """The copy takes seconds; one test measures it."""
    monkeypatch.setattr(timing, "copy_bytes_per_ms", lambda device, clock: 2e7)


def run(out, *options):
    """``(exit code, rows)`` of a short run on the CPU."""
    code = command.main(["--device", "cpu", "--seconds", "0.01", "--no-memory", "--out", str(out), *options])
    return code, json.loads(next(out.glob("*.json")).read_text())


def reference(sr, hr):
    return pspl_cuda.pspl_loss(sr, hr, 1.0, backend="reference")


def inject(monkeypatch, key, **changes):
    """Replace the implementation ``key``."""
    original = implementations.make
    changed = Implementation(key, f"injected {key}", lambda sr, hr: (sr - hr).abs().mean(), L1)._replace(**changes)
    monkeypatch.setattr(
        implementations, "make", lambda name, device: changed if name == key else original(name, device)
    )


@pytest.mark.deep
def test_the_command_writes_rows_a_table_and_pictures(tmp_path):
    command_line = f"-m benchmarks --quick --device cpu --sizes {SIZE} --seconds 0.2 --out".split()
    result = subprocess.run(
        [sys.executable, *command_line, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("*-part.json")
    rows = json.loads(path.read_text())
    names = {row["impl"] for row in rows}
    # Implementations that are not measured are listed too.
    assert {
        "nn.L1Loss",
        "nn.L1Loss, torch.compile",
        "PSPL fused",
        "PSPL reference, eager",
        "official formula, eager",
    } <= names
    assert all(any(peer.distribution in name for name in names) for peer in implementations.PEERS.values())
    timed = [row for row in rows if row["median_ms"] is not None]
    assert {(row["impl"], row["phase"]) for row in timed if row["impl"] == "PSPL fused"} == {
        ("PSPL fused", "forward"),
        ("PSPL fused", "backward"),
        ("PSPL fused", "forward_backward"),
    }
    for row in timed:
        assert row["shape"] == [1, 3, 20, 24]
        assert (row["dtype"], row["layout"]) == ("float32", "contiguous")
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["samples"] >= timing.MIN_ROUNDS
        assert row["torch"] == torch.__version__
        assert row["skipped"] is None
    for row in rows:
        assert (row["median_ms"] is None) == bool(row["skipped"])
    document = path.with_suffix(".md").read_text()
    assert "## 1x3x20x24, float32, contiguous" in document
    assert "| PSPL on fussim | all | it has a CUDA kernel only" in document
    pictures = sorted(tmp_path.glob("*.png"))
    assert [picture.name.rsplit("-", 1)[1] for picture in pictures] == [
        "speed.png",
        "time.png",
    ]  # memory: too small a size
    for picture in pictures:
        assert picture.read_bytes().startswith(PNG)
        assert f"({picture.name})" in document
    assert document in result.stdout


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda sr, hr: 1.01 * reference(sr, hr), "loss"),
        # The correct loss with a wrong gradient.
        (lambda sr, hr: 2 * (x := reference(sr, hr)) - x.detach(), "gradient"),
        (lambda sr, hr: reference(sr, hr) * float("nan"), "loss"),
        # The correct formula with another padding.
        (lambda sr, hr: pspl_cuda.pspl_loss(sr, hr, 1.0, padding="reflect", backend="reference"), "loss"),
    ],
    ids=["loss", "gradient", "nan", "padding"],
)
@pytest.mark.parametrize("ours", [False, True])
def test_inaccurate_implementations_are_not_timed(quick, monkeypatch, tmp_path, capsys, wrong, what, ours):
    inject(monkeypatch, "kornia", loss=wrong, tolerance=textbook("zeros"), ours=ours)
    code, rows = run(tmp_path, "--sizes", SIZE, "--impl", "kornia", "reference")
    assert code == (1 if ours else 0)
    (row,) = [row for row in rows if row["impl"] == "injected kornia"]
    assert row["median_ms"] is None
    assert row["skipped"].startswith(f"not accurate: the relative error of its {what} is")
    assert "| injected kornia | 1x3x20x24 float32 contiguous | not accurate" in next(tmp_path.glob("*.md")).read_text()
    assert ("FAILED: injected kornia" in capsys.readouterr().err) is ours
    assert any(row["impl"] == "PSPL reference, eager" and row["median_ms"] for row in rows)


def test_exceptions_are_reported(quick, monkeypatch, tmp_path):
    def fails(sr, hr):
        raise RuntimeError("first line\nsecond line")

    inject(monkeypatch, "kornia", loss=fails)
    code, rows = run(tmp_path, "--sizes", SIZE, "--impl", "kornia")
    assert code == 0
    assert [row["skipped"] for row in rows if row["impl"] == "injected kornia"] == [
        "it fails: RuntimeError: first line"
    ]


def test_slow_implementations_are_skipped(quick, monkeypatch, tmp_path):
    _, rows = run(tmp_path, "--sizes", SIZE, "--impl", "reference", "--limit", "1e-9")
    assert {row["impl"]: row["median_ms"] for row in rows} == {"nn.L1Loss": None, "PSPL reference, eager": None}
    assert all("one call takes at least" in row["skipped"] for row in rows)


def test_missing_and_broken_peers_are_reported(monkeypatch, tmp_path):
    (tmp_path / "piqa.py").write_text("raise RuntimeError('built for another torch')")
    (tmp_path / "kornia.py").write_text("import a_module_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("piqa", "piqa.utils.functional", "kornia", "kornia.metrics"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "pytorch_msssim.py").write_text(
        "raise ModuleNotFoundError('No module named pytorch_msssim', name='pytorch_msssim')"
    )
    monkeypatch.delitem(sys.modules, "pytorch_msssim", raising=False)
    _, missing = implementations.available(CPU, ("piqa", "kornia", "pytorch_msssim", "fussim"))
    assert missing == {
        "PSPL on piqa": "it can't be used: RuntimeError: built for another torch",
        "PSPL on kornia": "it can't be used: ModuleNotFoundError: No module named 'a_module_that_is_not_there'",
        "PSPL on pytorch-msssim": "it is not installed",
        "PSPL on fussim": "it has a CUDA kernel only",
    }


@pytest.mark.parametrize("key", implementations.KEYS)
def test_implementations_are_accurate(key):
    if key.endswith("compile"):
        pytest.skip("compiled by test_the_command_writes_rows_a_table_and_pictures")
    try:
        implementation = implementations.make(key, CPU)
    except implementations.UnavailableError as error:
        pytest.skip(str(error))
    sr, hr = images(Case((2, 3, 33, 40)), CPU)
    errors = check.measure(implementation, sr, hr, check.Oracle(sr, hr))
    assert check.failure(implementation.tolerance, errors, torch.float32, torch.float32) is None
    assert sr.grad is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", MIXED, MIXED_HALF])
@pytest.mark.parametrize("key", ["l1", "fused", "reference", "charbonnier", "fused_charbonnier"])
def test_16_bit_is_as_accurate_but_for_one_rounding(key, dtype):
    implementation = implementations.make(key, CPU)
    sr, hr = images(Case((2, 3, 33, 40), dtype, "channels_last"), CPU)
    errors = check.measure(implementation, sr, hr, check.Oracle(sr, hr))
    failure = check.failure(implementation.tolerance, errors, implementation.loss(sr, hr).dtype, sr.dtype)
    if (key, dtype) == ("charbonnier", "float16"):  # eps^2 is 0 in float16: 0 / 0 where the images agree
        assert "the relative error of its gradient is nan" in failure
    else:
        assert failure is None


def test_redraws_from_the_rows_alone(quick, tmp_path):
    run(tmp_path / "first", "--sizes", SIZE, "1x3x30x30", "--impl", "reference", "fussim")
    first = next((tmp_path / "first").glob("*.json"))
    again = tmp_path / "again" / first.name
    again.parent.mkdir()
    again.write_text(first.read_text())
    assert command.main(["--from", str(again)]) == 0
    assert again.with_suffix(".md").read_text() == first.with_suffix(".md").read_text()
    assert {path.name for path in again.parent.iterdir()} == {path.name for path in first.parent.iterdir()}


CASES = [
    Case((2, 3, 20, 24)),
    Case((2, 3, 20, 24), MIXED, "channels_last"),
    Case((2, 3, 20, 24), threads=1),
    Case((2, 3, 20, 24), training=True),
]


def test_rows_of_mixed_dtypes_threads_and_training_steps(quick, monkeypatch, tmp_path):
    """Each is measured as what it is, has a table of its own, and the calls of a case of one thread have one thread."""
    threads = torch.get_num_threads()
    seen = {}

    def record(sr, hr):
        seen.setdefault((sr.dtype, hr.dtype, sr.is_leaf), set()).add(torch.get_num_threads())
        return (sr - hr).abs().mean()

    inject(monkeypatch, "l1", loss=record, name="nn.L1Loss")
    monkeypatch.setattr(command, "select", lambda *_: CASES)
    code, rows = run(tmp_path, "--impl", "l1", "fused")
    assert code == 0
    assert torch.get_num_threads() == threads
    leaf, output = (torch.float32, torch.float32, True), (torch.float32, torch.float32, False)
    assert seen == {leaf: {1, threads}, (torch.bfloat16, torch.float32, True): {threads}, output: {threads}}
    phases = [{row["phase"] for row in rows if report.case_of(row) == case} for case in CASES]
    assert phases == [{"forward", "backward", "forward_backward"}] * 3 + [{"forward_backward"}]
    document = next(tmp_path.glob("*.md")).read_text()
    for title in (
        "float32, contiguous, 1 thread",
        "bfloat16+float32, channels_last",
        "float32, contiguous, training step",
    ):
        assert f"## 2x3x20x24, {title}\n" in document


def test_backward_alone_is_without_forward():
    """What prepares a call is not in its time."""
    clock = timing.Clock(CPU)
    order = []
    assert clock.milliseconds(lambda: order.append("call"), lambda: order.append(time.sleep(0.05))) < 50
    assert order == [None, "call"]


def test_training_step_trains():
    case = Case((2, 3, 16, 20))
    sr, hr = images(case, CPU)
    losses = []

    def loss(sr, hr):
        losses.append((sr - hr).square().mean())
        return losses[-1]

    step = implementations.training_step(loss, sr, hr, 4)
    for _ in range(60):
        step()
    assert losses[-1] < 0.8 * losses[0]
    assert sr.grad is None


@pytest.mark.parametrize(
    "case", [Case((1, 1, 8, 8)), Case((1, 1, 8, 8), MIXED), Case((1, 1, 8, 8), "bfloat16")], ids=str
)
def test_memory_floor(case):
    """Both images are read, and the gradient is written in sr's dtype. Backward moves nothing more."""
    sr, hr = images(case, CPU)
    expected = 64 * (2 * sr.element_size() + hr.element_size())
    assert case.floor_bytes == expected
    row = {"shape": case.shape, "dtype": case.dtype, "layout": case.layout, "copy_gb_s": 2.0}
    assert report._floor_ms(row) == pytest.approx(expected / 2e6)


def test_readme_has_the_numbers_of_the_results(tmp_path):
    """The table between the two comments is made from the rows in the repository."""
    page = tmp_path / "README.md"
    page.write_text((ROOT / "README.md").read_text())
    assert command.main(["--from", str(_copied(ROOT / README_ROWS, tmp_path)), "--readme", str(page)]) == 0
    assert page.read_text() == (ROOT / "README.md").read_text()
    assert "| 16x3x192x192 |" in page.read_text()
    page.write_text("no comments")
    with pytest.raises(SystemExit, match="lacks the lines"):
        command.main(["--from", str(tmp_path / Path(README_ROWS).name), "--readme", str(page)])


def test_a_folder_that_cannot_be_written_is_named_before_measuring(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(command.Run, "measure", lambda *_, **__: pytest.fail("it measured"))
    with pytest.raises(SystemExit, match=r"--out .*file/results can't be written: .* Nothing was measured"):
        command.main(["--device", "cpu", "--quick", "--out", str(tmp_path / "file" / "results")])


def test_plots_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    def full(rows, path):
        raise OSError("no space left on device")

    monkeypatch.setattr(command.report, "publish", full)
    with pytest.raises(SystemExit, match=r"the tables and plots of .* can't be written: no space left"):
        command.main(["--from", str(_copied(ROOT / README_ROWS, tmp_path))])


def test_readme_needs_rows_to_show(tmp_path):
    """``--readme`` alone measures nothing and writes nothing."""
    with pytest.raises(SystemExit, match="--readme needs --from"):
        command.main(["--readme", str(tmp_path / "README.md"), "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_default_folder_is_ignored_by_git():
    folder = command.parser().get_default("out").parts[0]
    assert f"{folder}/\n" in (ROOT / ".gitignore").read_text()


README_ROWS = "benchmarks/results/intel-r-xeon-r-processor-2-threads.json"


def _copied(path, folder):
    return Path(shutil.copy(path, folder))


def test_the_results_in_the_repository_are_made_from_their_rows():
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        document = path.with_suffix(".md").read_text()
        pictures = [picture.name for picture in sorted(path.parent.glob(f"{path.stem}-*.png"))]
        assert (
            report.markdown(report.load(path), [name for name in _pictures(document) if name in pictures]) == document
        )


def _pictures(document):
    return [line.split("](")[1][:-1] for line in document.splitlines() if line.startswith("![")]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{", "is not json"), ("[]", "contains no benchmark rows"), ('[{"a": 1}]', "contains no benchmark rows")],
)
def test_bad_rows_are_rejected(tmp_path, text, sentence):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=sentence):
        command.main(["--from", str(path)])
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_keeps_the_rows(quick, monkeypatch, tmp_path, capsys):
    def interrupt_in_the_second_case(sr, hr, calls=[]):  # noqa: B006  counts over all calls
        calls.append(sr.shape)
        # After the accuracy check and a few rounds: some samples exist.
        if calls.count(torch.Size((1, 3, 30, 30))) > 12:
            raise KeyboardInterrupt
        return reference(sr, hr)

    inject(monkeypatch, "kornia", loss=interrupt_in_the_second_case, tolerance=BUDGET)
    code, rows = run(tmp_path, "--sizes", SIZE, "1x3x30x30", "--impl", "kornia")
    assert code == 130
    printed = capsys.readouterr().err
    assert "Interrupted." in printed
    assert "10 timed rows in" in printed
    assert [tuple(row["shape"][2:]) for row in rows] == [(20, 24)] * 5 + [(30, 30)] * 5
    assert "## 1x3x30x30" in next(tmp_path.glob("*.md")).read_text()


def test_files_are_replaced_atomically(monkeypatch, tmp_path):
    path = tmp_path / "rows.json"
    report.save([{"a": 1}], path)

    def fail(draft, target):
        raise OSError("disk full")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.save([{"a": 2}] * 1000, path)
    assert json.loads(path.read_text()) == [{"a": 1}]


def test_fast_calls_are_repeated_within_a_round():
    class Fake:
        cuda = False

        def milliseconds(self, call, prepare):
            return call() + (prepare() if prepare else 0)

    times = {}
    timing.interleave({"slow": lambda: 80.0, "fast": lambda: 1.0}, Fake(), 0, times, {"slow": lambda: 10.0})
    assert times["slow"].warm == [90.0] * timing.MIN_ROUNDS
    assert times["fast"].warm == [1.0] * 8 * timing.MIN_ROUNDS


@pytest.mark.parametrize(("load", "said"), [(0.3, False), (7.0, True), (None, False)])
def test_a_busy_machine_is_reported(quick, monkeypatch, tmp_path, capsys, load, said):
    if load is None:
        monkeypatch.delattr(machine.os, "getloadavg", raising=False)
    else:
        monkeypatch.setattr(machine.os, "getloadavg", lambda: (load, 0, 0), raising=False)
    run(tmp_path, "--sizes", SIZE, "--impl", "l1")
    document = next(tmp_path.glob("*.md")).read_text()
    assert ("Other programs used the machine (load 7)" in document) is said
    assert ("Other programs use this machine (load 7.0)" in capsys.readouterr().err) is said


def test_percentiles_stay_within_the_samples():
    assert timing.summary([3.0]) == (3.0, 3.0, 3.0)
    median, p20, p80 = timing.summary([1.0, 2.0, 30.0])
    assert 1.0 <= p20 <= median == 2.0 <= p80 <= 30.0


@pytest.mark.deep
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the high-water mark of memory can't be reset on this system"
)
def test_peak_memory_of_known_cases():
    case = Case((1, 3, 800, 800))
    tensor = case.numel * 4
    with memory.Child() as child:
        # The larger one first: its high-water mark must not be attributed to the other.
        official, l1 = child.peak("official", case), child.peak("l1", case)
        assert child.peak("l1", CASE) is None
    # F.l1_loss allocates |d|, its backward the expanded grad_output and a sign; the gradient is not included.
    assert 0.9 * tensor < l1["forward"] < 3.1 * tensor
    assert 0.9 * tensor < l1["forward_backward"] < 4.1 * tensor
    # At the covariance, the official formula holds five blurred moments, their products and variances.
    assert official["forward_backward"] > 6 * tensor


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_cases(device_type):
    every = select(device_type, quick=False)
    assert len(every) == len(set(every))
    assert {case.shape for case in every if case.plain} == set(SIZES)
    others = [case for case in every if not case.plain]
    assert {(case.dtype, case.layout) for case in others if not (case.threads or case.training)} == set(OTHERS)
    assert [case for case in others if case.training] == [Case(PATCHES, training=True)]
    assert {case.dtype for case in others if case.keys and "fused_charbonnier" in case.keys} == {MIXED_HALF}
    assert [case.shape for case in others if case.threads] == [PATCHES] * (device_type == "cpu")
    assert set(select(device_type, quick=True)) < set(every)
    assert {case.dtype for case in select(device_type, False, dtypes=["bfloat16"])} == {"bfloat16"}
    only = select(device_type, True, sizes=[(1, 3, 8, 8)], layouts=["channels_last"])
    assert only == [Case((1, 3, 8, 8), "float32", "channels_last")]


@pytest.mark.parametrize(
    "options", [["--sizes", "3x64x64"], ["--sizes", "0x3x8x8"], ["--impl", "unknown"], ["--dtypes", "int8"]]
)
def test_bad_options_are_rejected(options, capsys):
    with pytest.raises(SystemExit) as error:
        command.main(options)
    assert error.value.code == 2
    assert options[1] in capsys.readouterr().err


def test_an_empty_selection_is_an_error():
    with pytest.raises(SystemExit, match="Give the sizes too"):
        command.main(["--dtypes", "float16", "--layouts", "channels_last"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present")
def test_a_missing_gpu_is_an_error():
    with pytest.raises(SystemExit, match="torch finds no GPU"):
        command.main(["--device", "cuda"])
