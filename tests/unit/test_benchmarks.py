"""python -m benchmarks: valid rows, no speed for who is not correct, who is skipped is named, nothing is lost.

No time is asserted.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pspl_cuda
from benchmarks import __main__ as command
from benchmarks import check, harness, implementations, memory, peak_fma, report, timing
from benchmarks.cases import OTHERS, SIZES, Case, chosen, images
from benchmarks.implementations import BUDGET, Implementation, textbook

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SIZE = "1x3x20x24"
CASE = Case((1, 3, 20, 24))
PNG = b"\x89PNG\r\n"


@pytest.fixture
def quick(monkeypatch):
    """What is measured about the machine takes seconds, and is tested once."""
    monkeypatch.setattr(peak_fma, "measure", lambda threads: 50.0)
    monkeypatch.setattr(timing, "copy_bytes_per_ms", lambda device, clock: 2e7)


def run(out, *options):
    """``(exit code, rows)`` of a short run on the CPU."""
    code = command.main(["--device", "cpu", "--seconds", "0.01", "--no-memory", "--out", str(out), *options])
    return code, json.loads(next(out.glob("*.json")).read_text())


def inject(monkeypatch, key, **changes):
    """Let the implementation ``key`` be another one."""
    original = implementations.make
    changed = Implementation(key, f"injected {key}", lambda sr, hr: (sr - hr).abs().mean(), BUDGET)._replace(**changes)
    monkeypatch.setattr(
        implementations, "make", lambda name, device: changed if name == key else original(name, device)
    )


def test_the_command_writes_rows_a_table_and_pictures(tmp_path):
    command_line = f"-m benchmarks --quick --device cpu --sizes {SIZE} --seconds 0.2 --out".split()
    result = subprocess.run(
        [sys.executable, *command_line, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("*-part.json")
    rows = json.loads(path.read_text())
    names = {row["impl"] for row in rows}
    # Whoever is not measured is named.
    assert {"nn.L1Loss", "PSPL fused", "PSPL reference, eager", "official formula, eager"} <= names
    assert all(any(peer.distribution in name for name in names) for peer in implementations.PEERS.values())
    timed = [row for row in rows if row["median_ms"] is not None]
    assert {(row["impl"], row["phase"]) for row in timed if row["impl"] == "PSPL fused"} == {
        ("PSPL fused", "forward"),
        ("PSPL fused", "forward_backward"),
    }
    for row in timed:
        assert row["shape"] == [1, 3, 20, 24]
        assert (row["dtype"], row["layout"]) == ("float32", "contiguous")
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["samples"] >= timing.MIN_ROUNDS
        assert row["floor_fraction"] >= 0
        assert row["torch"] == torch.__version__
        assert row["skipped"] is None
    for row in rows:
        assert (row["median_ms"] is None) == bool(row["skipped"])
    document = path.with_suffix(".md").read_text()
    assert "## 1x3x20x24, float32, contiguous" in document
    assert "| PSPL on piq | all | it returns means only" in document
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
        (lambda sr, hr: 1.01 * implementations.REFERENCE.loss(sr, hr), "loss"),
        # The right loss, a wrong gradient.
        (lambda sr, hr: 2 * (x := implementations.REFERENCE.loss(sr, hr)) - x.detach(), "gradient"),
        (lambda sr, hr: implementations.REFERENCE.loss(sr, hr) * float("nan"), "loss"),
        # The right formula, another padding than it claims.
        (lambda sr, hr: pspl_cuda.reference.pspl_loss(sr, hr, 1.0, padding="reflect"), "loss"),
    ],
    ids=["loss", "gradient", "nan", "padding"],
)
@pytest.mark.parametrize("ours", [False, True])
def test_no_speed_for_who_is_not_correct(quick, monkeypatch, tmp_path, capsys, wrong, what, ours):
    inject(monkeypatch, "kornia", loss=wrong, claim=textbook("zeros"), ours=ours)
    code, rows = run(tmp_path, "--sizes", SIZE, "--impl", "kornia", "reference")
    assert code == (1 if ours else 0)
    (row,) = [row for row in rows if row["impl"] == "injected kornia"]
    assert row["median_ms"] is None
    assert row["skipped"].startswith(f"not correct: its {what} is off by")
    assert "| injected kornia | 1x3x20x24 float32 contiguous | not correct" in next(tmp_path.glob("*.md")).read_text()
    assert ("NOT CORRECT: injected kornia" in capsys.readouterr().err) is ours
    assert any(row["impl"] == "PSPL reference, eager" and row["median_ms"] for row in rows)


def test_who_fails_is_named(quick, monkeypatch, tmp_path):
    def fails(sr, hr):
        raise RuntimeError("no, not\nlike this")

    inject(monkeypatch, "kornia", loss=fails)
    code, rows = run(tmp_path, "--sizes", SIZE, "--impl", "kornia")
    assert code == 0
    assert [row["skipped"] for row in rows if row["impl"] == "injected kornia"] == ["it fails: RuntimeError: no, not"]


def test_who_is_slow_is_named(quick, monkeypatch, tmp_path):
    _, rows = run(tmp_path, "--sizes", SIZE, "--impl", "reference", "--limit", "1e-9")
    assert {row["impl"]: row["median_ms"] for row in rows} == {"nn.L1Loss": None, "PSPL reference, eager": None}
    assert all("one call takes at least" in row["skipped"] for row in rows)


def test_who_will_be_slow_is_not_waited_for(quick, monkeypatch, tmp_path):
    calls = []

    def counted(sr, hr):
        calls.append(sr.shape)
        return (sr - hr).abs().mean()

    monkeypatch.setattr(harness, "LARGE", 1)
    inject(monkeypatch, "kornia", loss=counted, claim=implementations.L1.claim)
    # A second for any call of the small size, so the large one takes far more.
    monkeypatch.setattr(timing.Clock, "milliseconds", lambda self, call: (call(), 1000.0)[1])
    _, rows = run(tmp_path, "--sizes", SIZE, "1x3x90x90", "--impl", "kornia")
    assert set(calls) == {torch.Size((1, 3, 20, 24))}
    (row,) = [row for row in rows if row["impl"] == "injected kornia" and row["skipped"]]
    assert row["shape"] == [1, 3, 90, 90]
    assert row["skipped"].startswith("one call takes about 16.9 s")


def test_missing_and_broken_peers_are_named(monkeypatch, tmp_path):
    (tmp_path / "piqa.py").write_text("raise RuntimeError('built for another torch')")
    (tmp_path / "kornia.py").write_text("import a_module_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("piqa", "kornia", "fused_ssim"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "fused_ssim", None)  # as if it were not installed
    _, missing = implementations.available(CPU, ("piqa", "kornia", "fused_ssim", "piq"))
    assert missing["PSPL on piqa"] == "it can't be imported: RuntimeError: built for another torch"
    assert missing["PSPL on kornia"] == "it can't be imported: No module named 'a_module_that_is_not_there'"
    assert missing["PSPL on piq"].startswith("it returns means only")
    assert "PSPL on fused-ssim" in missing


@pytest.mark.parametrize("key", implementations.KEYS)
def test_implementations_compute_what_they_claim(key):
    if key == "compile":
        pytest.skip("compiled by test_the_command_writes_rows_a_table_and_pictures")
    try:
        implementation = implementations.make(key, CPU)
    except implementations.UnavailableError as error:
        pytest.skip(str(error))
    sr, hr = images(Case((2, 3, 33, 40)), CPU)
    errors = check.errors(implementation, sr, hr, check.Oracle(sr, hr))
    assert check.refusal(implementation.claim, errors, torch.float32, torch.float32) is None
    assert sr.grad is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("key", ["l1", "fused", "reference"])
def test_16_bit_is_held_to_the_claim_and_one_rounding(key, dtype):
    implementation = implementations.make(key, CPU)
    sr, hr = images(Case((2, 3, 33, 40), dtype, "channels_last"), CPU)
    errors = check.errors(implementation, sr, hr, check.Oracle(sr, hr))
    assert check.refusal(implementation.claim, errors, implementation.loss(sr, hr).dtype, sr.dtype) is None


def test_redraws_from_the_rows_alone(quick, tmp_path):
    run(tmp_path / "first", "--sizes", SIZE, "1x3x30x30", "--impl", "reference", "piq")
    first = next((tmp_path / "first").glob("*.json"))
    again = tmp_path / "again" / first.name
    again.parent.mkdir()
    again.write_text(first.read_text())
    assert command.main(["--from", str(again)]) == 0
    assert again.with_suffix(".md").read_text() == first.with_suffix(".md").read_text()
    assert {path.name for path in again.parent.iterdir()} == {path.name for path in first.parent.iterdir()}


def test_the_results_in_the_repository_are_drawn_from_their_rows():
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
    [("{", "is not json"), ("[]", "holds no benchmark rows"), ('[{"a": 1}]', "holds no benchmark rows")],
)
def test_bad_rows_are_refused(tmp_path, text, sentence):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=sentence):
        command.main(["--from", str(path)])
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_keeps_the_rows(quick, monkeypatch, tmp_path, capsys):
    def interrupt_in_the_second_case(sr, hr, calls=[]):  # noqa: B006  counts over all calls
        calls.append(sr.shape)
        # Checked thrice or more, and timed in some rounds: some samples are there.
        if calls.count(torch.Size((1, 3, 30, 30))) > 12:
            raise KeyboardInterrupt
        return pspl_cuda.reference.pspl_loss(sr, hr, 1.0)

    inject(monkeypatch, "kornia", loss=interrupt_in_the_second_case)
    code, rows = run(tmp_path, "--sizes", SIZE, "1x3x30x30", "--impl", "kornia")
    assert code == 130
    assert "Interrupted. 8 rows" in capsys.readouterr().err
    assert [tuple(row["shape"][2:]) for row in rows] == [(20, 24)] * 4 + [(30, 30)] * 4
    assert "## 1x3x30x30" in next(tmp_path.glob("*.md")).read_text()


def test_a_file_is_replaced_as_a_whole_or_not_at_all(monkeypatch, tmp_path):
    path = tmp_path / "rows.json"
    report.save([{"a": 1}], path)

    def power_failure(draft, target):
        raise OSError("no more power")

    monkeypatch.setattr(report.os, "replace", power_failure)
    with pytest.raises(OSError, match="no more power"):
        report.save([{"a": 2}] * 1000, path)
    assert json.loads(path.read_text()) == [{"a": 1}]


def test_rounds_give_everybody_a_turn_and_the_fast_ones_several():
    class Fake:
        cuda = False

        def milliseconds(self, call):
            return call()

    times, rounds = {}, []
    timing.interleave({"slow": lambda: 90.0, "fast": lambda: 1.0}, Fake(), 0, times, rounds.append)
    assert rounds == list(range(1, timing.MIN_ROUNDS + 1))
    assert times["slow"].warm == [90.0] * timing.MIN_ROUNDS
    assert times["fast"].warm == [1.0] * 8 * timing.MIN_ROUNDS


@pytest.mark.parametrize(("load", "said"), [(0.3, False), (7.0, True), (None, False)])
def test_a_disturbed_run_says_so(quick, monkeypatch, tmp_path, capsys, load, said):
    if load is None:
        monkeypatch.delattr(harness.os, "getloadavg", raising=False)
    else:
        monkeypatch.setattr(harness.os, "getloadavg", lambda: (load, 0, 0), raising=False)
    run(tmp_path, "--sizes", SIZE, "--impl", "l1")
    document = next(tmp_path.glob("*.md")).read_text()
    assert ("Other programs used the machine (load 7 at the start)" in document) is said
    assert ("Other programs use this machine (load 7.0)" in capsys.readouterr().err) is said


def test_percentiles_stay_within_the_samples():
    assert timing.summary([3.0]) == (3.0, 3.0, 3.0)
    median, p20, p80 = timing.summary([1.0, 2.0, 30.0])
    assert 1.0 <= p20 <= median == 2.0 <= p80 <= 30.0


def test_fma_peak_is_measured_or_missed_in_a_sentence(monkeypatch):
    assert 0.05 < peak_fma.measure(1) < 5000
    monkeypatch.setenv("CXX", f"{sys.executable} -c exit(3)")
    with pytest.raises(peak_fma.NoPeakError, match=r"can't compile peak_fma.cpp: exit code 3"):
        peak_fma.measure(1)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(peak_fma.NoPeakError, match=r"can't compile peak_fma.cpp: .*no-such-compiler"):
        peak_fma.measure(1)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(peak_fma.NoPeakError, match="no C\\+\\+ compiler on the PATH"):
        peak_fma.measure(1)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the high-water mark of memory can't be reset here"
)
def test_peak_memory_of_known_cases():
    case = Case((1, 3, 800, 800))
    tensor = case.numel * 4
    with memory.Child() as child:
        # The hungry one first: its high-water mark must not be taken for the other's.
        official, l1 = child.peak("official", case), child.peak("l1", case)
        assert child.peak("l1", CASE) is None
    # F.l1_loss has |d| or its like for a moment, and its backward the spread upstream and a sign; the gradient does not count.
    assert 0.9 * tensor < l1["forward"] < 3.1 * tensor
    assert 0.9 * tensor < l1["forward_backward"] < 4.1 * tensor
    # When it has the covariance, the official formula holds five blurred moments, their products and variances.
    assert official["forward_backward"] > 6 * tensor


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_cases(device_type):
    every = chosen(device_type, quick=False)
    assert len(every) == len(set(every))
    assert {case.shape for case in every if case.plain} == set(SIZES)
    assert {(case.dtype, case.layout) for case in every if not case.plain} == set(OTHERS)
    assert set(chosen(device_type, quick=True)) < set(every)
    assert {case.dtype for case in chosen(device_type, False, dtypes=["bfloat16"])} == {"bfloat16"}
    only = chosen(device_type, True, sizes=[(1, 3, 8, 8)], layouts=["channels_last"])
    assert only == [Case((1, 3, 8, 8), "float32", "channels_last")]


@pytest.mark.parametrize(
    "options", [["--sizes", "3x64x64"], ["--sizes", "0x3x8x8"], ["--impl", "nobody"], ["--dtypes", "int8"]]
)
def test_bad_options_are_refused(options, capsys):
    with pytest.raises(SystemExit) as error:
        command.main(options)
    assert error.value.code == 2
    assert options[1] in capsys.readouterr().err


def test_an_empty_choice_is_refused():
    with pytest.raises(SystemExit, match="name the sizes too"):
        command.main(["--dtypes", "float16", "--layouts", "channels_last"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(SystemExit, match="torch sees no GPU"):
        command.main(["--device", "cuda"])
