"""PSPLLoss counts iterations, and keeps its count whatever is done to the module."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import math
import pickle
import re
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import pspl_cuda
from pspl_cuda import PSPLLoss, PSPLStats, _library, config


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand((2, 3, 9, 10), generator=generator)
    return hr + 0.1 * torch.randn(hr.shape, generator=generator), hr


def reference(sr, hr, step, **keywords):
    return pspl_cuda.pspl_loss(sr, hr, step, **keywords)


# ---------------------------------------------------------------- counting


def test_first_call_is_iteration_one(pair):
    """The official code advances its step before the loss: with step 0 the first iteration would train nothing."""
    loss = PSPLLoss()
    assert (loss.iteration, loss.step, loss.delta) == (0, 0.0, 0.0)
    for iteration in (1, 2, 3):
        value = loss(*pair)
        assert loss.iteration == iteration
        assert loss.step == iteration / 1000
        assert torch.equal(value, reference(*pair, iteration / 1000))


def test_step_and_delta():
    loss = PSPLLoss(alpha=0.5, beta=0.25, iterations_per_step=200, start_iteration=300)
    assert loss.step == 1.5
    assert loss.delta == 1.0
    loss.iteration = 0
    assert loss.delta == 0.25


def test_eval_does_not_count(pair):
    """Validation sees the current step, as often as it likes."""
    loss = PSPLLoss(iterations_per_step=2)
    loss(*pair)
    loss(*pair)
    loss.eval()
    for _ in range(3):
        assert torch.equal(loss(*pair), reference(*pair, 1.0))
    assert loss.iteration == 2
    loss.train()
    loss(*pair)
    assert loss.iteration == 3


def test_no_grad_in_training_mode_counts(pair):
    """The mode decides, not whether someone wants a gradient."""
    loss = PSPLLoss()
    with torch.no_grad():
        loss(*pair)
    assert loss.iteration == 1


def test_calls_per_iteration(pair):
    """Micro-batches of one iteration share its step; the first of them begins it."""
    loss = PSPLLoss(calls_per_iteration=3, iterations_per_step=10)
    seen = []
    for _ in range(7):
        value = loss(*pair)
        seen.append(loss.iteration)
        assert torch.equal(value, reference(*pair, loss.iteration / 10))
    assert seen == [1, 1, 1, 2, 2, 2, 3]


def test_start_iteration(pair):
    loss = PSPLLoss(start_iteration=41, calls_per_iteration=2, iterations_per_step=42)
    assert loss.iteration == 41
    assert torch.equal(loss(*pair), reference(*pair, 1.0))
    assert loss.iteration == 42


def test_resume_without_saved_state(pair):
    """From the iteration alone, a resumed run computes what the uninterrupted one does, also with accumulation."""
    keywords = {"iterations_per_step": 3, "calls_per_iteration": 2}
    loss = PSPLLoss(**keywords)
    uninterrupted = [loss(*pair) for _ in range(10)]
    loss = PSPLLoss(**keywords, start_iteration=3)
    assert [loss(*pair) for _ in range(4)] == uninterrupted[6:]


def test_iteration_is_settable(pair):
    loss = PSPLLoss(calls_per_iteration=2)
    loss(*pair)
    loss.iteration = 999
    assert loss.iteration == 999
    loss(*pair)
    loss(*pair)
    assert loss.iteration == 1000
    assert loss.step == 1.0


@pytest.mark.parametrize("step", [2.5, torch.tensor(2.5)], ids=["number", "tensor"])
def test_given_step_leaves_the_count_alone(pair, step):
    """Whoever keeps a schedule of their own keeps it alone."""
    loss = PSPLLoss()
    loss(*pair)
    assert torch.equal(loss(*pair, step=step), reference(*pair, 2.5))
    assert torch.equal(loss(*pair, step), reference(*pair, 2.5))
    assert loss.iteration == 1


# ---------------------------------------------------------------- the schedule of a run of known length


TOTAL = 12  # iterations; a third of them is 4, and one is 5 steps


@pytest.mark.parametrize("calls_per_iteration", [1, 2])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_total_iterations(pair, capturable, calls_per_iteration, compiled):
    """Step 20 after a third of the run, 60 at its end, and growth beyond it."""
    loss = PSPLLoss(total_iterations=TOTAL, calls_per_iteration=calls_per_iteration, capturable=capturable)
    torch._dynamo.reset()
    function = torch.compile(loss, backend="eager", fullgraph=True) if compiled else loss
    for call in range((TOTAL + 1) * calls_per_iteration):
        iteration = call // calls_per_iteration + 1
        torch.testing.assert_close(function(*pair), reference(*pair, 5.0 * iteration), rtol=2e-6, atol=0)
        assert loss.step == 5 * iteration == {4: 20, 12: 60}.get(iteration, loss.step)
    assert loss.total_iterations == TOTAL
    torch._dynamo.reset()


def test_last_given_schedule_counts():
    loss = PSPLLoss(total_iterations=600)
    assert loss.iterations_per_step == 10
    loss.iterations_per_step = 7
    assert (loss.total_iterations, loss.iterations_per_step) == (None, 7)
    loss.total_iterations = 1200
    assert (loss.total_iterations, loss.iterations_per_step) == (1200, 20)
    assert (PSPLLoss().total_iterations, PSPLLoss().iterations_per_step) == (None, 1000)


@pytest.mark.parametrize("step", [2.5, torch.tensor(2.5)], ids=["number", "tensor"])
def test_total_iterations_with_a_given_step(pair, step):
    loss = PSPLLoss(total_iterations=600)
    with pytest.raises(ValueError, match=r"total_iterations is 600 and step was given.*; expected one of them\. .*\.$"):
        loss(*pair, step)
    assert loss.iteration == 0
    loss.iterations_per_step = 1000
    assert torch.equal(loss(*pair, step), reference(*pair, 2.5))


@pytest.mark.parametrize(
    ("saved_with", "loaded_with", "said"),
    [
        ({"total_iterations": 600}, {"total_iterations": 600}, None),
        ({"total_iterations": 600}, {"total_iterations": 1200}, "total_iterations=600, .* has total_iterations=1200"),
        ({}, {"total_iterations": 600}, "no total_iterations, .* has total_iterations=600"),
        ({"total_iterations": 600}, {}, "total_iterations=600, .* has no total_iterations"),
        ({"iterations_per_step": 5}, {"iterations_per_step": 7}, None),
    ],
    ids=str,
)
def test_resume_of_a_run_of_another_length(pair, saved_with, loaded_with, said):
    """The iteration goes on, so the step changes at once: that is said."""
    loss = PSPLLoss(**saved_with, start_iteration=99)
    loss(*pair)
    resumed = PSPLLoss(**loaded_with)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumed.load_state_dict(_saved(loss.state_dict()))
    assert [w.category for w in caught] == ([UserWarning] if said else [])
    if said:
        assert re.search(rf"{said}: at iteration 100 its step is now {resumed.step:g}\. .*\.$", str(caught[0].message))
    assert resumed.iteration == 100
    assert torch.equal(resumed(*pair), reference(*pair, 101 / resumed.iterations_per_step))


BAD_CALLS = {
    "shapes": lambda loss, sr, hr: loss(sr, hr[:1]),
    "dtype": lambda loss, sr, hr: loss(sr, hr.int()),
    "not a tensor": lambda loss, sr, hr: loss(sr, None),
    "lists": lambda loss, sr, hr: loss([sr], [hr, hr]),
    "the second output": lambda loss, sr, hr: loss([sr, sr], [hr, hr[:1]]),
    "backend": lambda loss, sr, hr: _with(loss, "backend", "gpu")(sr, hr),
}


def _with(loss, name, value):
    loss = copy.copy(loss)
    loss._calls = loss._calls[:]  # the same memory
    setattr(loss, name, value)
    return loss


@pytest.mark.parametrize("calls_per_iteration", [1, 3])
@pytest.mark.parametrize("bad", BAD_CALLS)
def test_a_refused_call_does_not_count(pair, bad, calls_per_iteration):
    """A bad batch that is skipped by the loop, also in the middle of an iteration."""
    loss = PSPLLoss(iterations_per_step=2, calls_per_iteration=calls_per_iteration)
    loss(*pair)
    for _ in range(5):
        with pytest.raises((TypeError, ValueError)):
            BAD_CALLS[bad](loss, *pair)
    assert loss.iteration == 1
    for call in range(1, 2 * calls_per_iteration):
        value = loss(*pair)
        assert loss.iteration == 1 + call // calls_per_iteration
        assert torch.equal(value, reference(*pair, loss.iteration / 2))


def test_never_reads_the_images(pair, monkeypatch):
    """Reading a number of the images' device would wait for it in every iteration. (The count is on the CPU.)"""

    def guard(name):
        original = getattr(torch.Tensor, name)

        def guarded(self, *args):
            assert not self.is_floating_point(), f"Tensor.{name} was called"
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, guarded)

    for name in ("item", "__float__", "__int__", "__bool__", "tolist", "numpy", "cpu"):
        guard(name)
    loss = PSPLLoss(return_stats=True)
    for backend in ("reference", "auto"):
        loss.backend = backend
        value, _ = loss(pair[0].requires_grad_(), pair[1])
        value.backward()
    loss(*pair, step=torch.tensor(1.0))


def test_runs_without_data(pair):
    """Meta tensors have shapes but no numbers: whatever reads one raises."""
    sr, hr = (x.to("meta") for x in pair)
    loss = PSPLLoss(backend="reference", return_stats=True)
    value, stats = loss(sr.requires_grad_(), hr)
    value.backward()
    assert sr.grad.shape == sr.shape
    assert stats.psnr.shape == value.shape == ()
    assert loss.iteration == 1


def test_counting_in_inference_mode(pair):
    """A warm-up in inference mode leaves nothing behind that later copies choke on."""
    loss = PSPLLoss()
    with torch.inference_mode():
        loss(*pair)
    loss(pair[0].requires_grad_(), pair[1]).backward()
    assert copy.deepcopy(loss).iteration == pickle.loads(pickle.dumps(loss)).iteration == 2
    with torch.inference_mode():
        state = loss.state_dict()
    other = PSPLLoss()
    other.load_state_dict(_saved(state))
    other(*pair)
    assert other.iteration == 3


def _assert_plain(tensor):
    """Before anything reads its memory: what is not there would end the process."""
    assert type(tensor) is torch.Tensor
    assert not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    assert not tensor.is_inference()
    assert tensor.data_ptr() != 0


def _in_fake_mode(loss, pair):
    with FakeTensorMode() as mode:
        loss(*(mode.from_tensor(image) for image in pair))


def _state_in_fake_mode(loss, pair):
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(image) for image in pair]
        loss.state_dict()
        loss(*fake)
        _assert_plain(loss._calls)
        loss.iteration = 6


def _export(loss, pair):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.export(loss, pair, strict=False)


def _compiled(function):
    def run(loss, pair):
        torch._dynamo.reset()
        with contextlib.suppress(RuntimeError):  # torch.func.grad refuses that the count changes in it
            function(torch.compile(loss, backend="eager"), pair)

    return run


MODES = {
    "FakeTensorMode": _in_fake_mode,
    "state_dict in FakeTensorMode": _state_in_fake_mode,
    "inference_mode": lambda loss, pair: torch.inference_mode()(loss)(*pair),
    "torch.func.grad": lambda loss, pair: torch.func.grad(lambda a: loss(a, pair[1]))(pair[0]),
    "torch.func.jvp": lambda loss, pair: torch.func.jvp(lambda a: loss(a, pair[1]), pair[:1], pair[1:]),
    "torch.func.vmap": lambda loss, pair: torch.func.vmap(loss)(*pair),
    "make_fx": lambda loss, pair: make_fx(loss, tracing_mode="fake")(*pair),
    "export": _export,
    "autocast": lambda loss, pair: torch.autocast("cpu", dtype=torch.bfloat16)(loss)(*pair),
}
MODES |= {
    f"compiled in {mode}": _compiled(MODES[mode])
    for mode in ("FakeTensorMode", "inference_mode", "torch.func.grad", "torch.func.vmap")
}


@pytest.mark.parametrize("mode", MODES)
def test_count_after_ambient_modes(pair, mode):
    """The count is a plain number whatever surrounded a call: it has advanced by one or not at all, and all that is done to a
    module afterwards works. (The reference, which every mode can trace.)"""
    loss = PSPLLoss(start_iteration=5, iterations_per_step=1, backend="reference")
    MODES[mode](loss, pair)
    _assert_plain(loss._calls)
    count = loss.iteration
    assert type(count) is int
    assert count in (5, 6)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), PSPLLoss(iterations_per_step=1)):
        twin.load_state_dict(_saved(loss.state_dict()))
        value = twin(pair[0].clone().requires_grad_(), pair[1])
        value.backward()
        assert torch.equal(value, PSPLLoss(backend=twin.backend)(*pair, step=count + 1.0))
        assert twin.iteration == count + 1
    assert loss.iteration == count


@pytest.mark.parametrize("mode", ["FakeTensorMode", "compiled in FakeTensorMode", "torch.func.grad", "inference_mode"])
def test_compile_after_ambient_modes(pair, mode):
    """After FakeTensorMode and deepcopy, compiled code once wrote to memory that was not there."""
    loss = PSPLLoss(start_iteration=5, backend="reference")
    MODES[mode](loss, pair)
    _assert_plain(loss._calls)
    count = loss.iteration
    twin = copy.deepcopy(loss)
    _assert_plain(twin._calls)
    torch._dynamo.reset()
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    for call in (1, 2):
        compiled(*pair)
        assert twin.iteration == count + call
    torch._dynamo.reset()


# ---------------------------------------------------------------- what it computes


NOT_DEFAULT = {
    "alpha": 0.5,
    "beta": 0.3,
    "gamma": 3.0,
    "mu": -0.5,
    "distance": "charbonnier",
    "data_range": 2.0,
    "window_size": 7,
    "sigma": 1.0,
    "k1": 0.02,
    "k2": 0.05,
    "padding": "reflect",
    "eps": 0.05,
    "reduction": "sum",
    "backend": "reference",
}


def test_keywords_reach_the_function(pair):
    """Each keyword, with a value that is not the default, makes the module what the function is."""
    keywords = NOT_DEFAULT
    default = PSPLLoss(start_iteration=1000, backend="reference").eval()(*pair)
    value = PSPLLoss(start_iteration=1000, **keywords).eval()(*pair)
    assert torch.equal(value, reference(*pair, 1.0, **keywords))
    for name in keywords:
        others = {k: v for k, v in keywords.items() if k not in (name, "backend")}
        without = PSPLLoss(start_iteration=1000, backend="reference", **others).eval()(*pair)
        assert name == "backend" or not torch.equal(value, without), f"{name} does nothing"
    assert not torch.equal(value, default)


def test_is_importable_with_the_signature_of_the_function():
    """The module takes every keyword of the function, with the same default."""
    function = inspect.signature(pspl_cuda.pspl_loss).parameters
    module = inspect.signature(PSPLLoss).parameters
    for name, parameter in function.items():
        if name not in ("sr", "hr", "step"):
            assert module[name].default == parameter.default
            assert module[name].kind is inspect.Parameter.KEYWORD_ONLY


def test_defaults_are_written_once():
    """Every signature shows the defaults of Config."""
    defaults = config.DEFAULTS._asdict()
    for function in (pspl_cuda.pspl_loss, pspl_cuda.similarity_map, pspl_cuda.attention_map, PSPLLoss):
        shown = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
        shared = shown.keys() & defaults.keys()
        assert len(shared) >= 6
        assert all(shown[name] == defaults[name] for name in shared)
    assert defaults.keys() <= inspect.signature(pspl_cuda.pspl_loss).parameters.keys()


def test_loss_weight(pair):
    sr = pair[0].requires_grad_()
    plain, weighted = PSPLLoss(start_iteration=999), PSPLLoss(start_iteration=999, loss_weight=0.25)
    a, b = plain(sr, pair[1]), weighted(sr, pair[1])
    assert torch.equal(0.25 * a, b)
    assert torch.equal(0.25 * torch.autograd.grad(a, sr)[0], torch.autograd.grad(b, sr)[0])
    assert PSPLLoss(loss_weight=0)(*pair) == 0


def test_stats(pair):
    """The statistics are those of the images: a weight on the loss does not weigh them."""
    loss = PSPLLoss(return_stats=True, loss_weight=3.0, start_iteration=999, data_range=2.0)
    value, stats = loss(*pair)
    expected, expected_stats = reference(*pair, 1.0, data_range=2.0, return_stats=True)
    assert torch.equal(value, 3 * expected)
    assert isinstance(stats, PSPLStats)
    assert all(torch.equal(a, b) for a, b in zip(stats[:4], expected_stats[:4], strict=True))
    mse = (pair[0] - pair[1]).square().mean().item()
    assert stats.psnr.item() == pytest.approx(10 * math.log10(4 / mse), rel=1e-5)


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("return_stats", [False, True])
def test_several_outputs(pair, kind, return_stats):
    """LapSRN's scales: the sum of the losses, at one step, as one call; each scale with its own statistics."""
    small = [x[..., ::2, ::2] for x in pair]
    loss = PSPLLoss(iterations_per_step=1, loss_weight=0.5, return_stats=return_stats)
    outputs, targets = kind((pair[0].requires_grad_(), small[0])), kind((pair[1], small[1]))
    value = loss(outputs, targets)
    expected = 0.5 * (reference(*pair, 1.0) + reference(*small, 1.0))
    if return_stats:
        value, stats = value
        assert [s.mean_abs_error.item() for s in stats] == pytest.approx(
            [(a - b).abs().mean().item() for a, b in (pair, small)], rel=1e-5
        )
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    assert loss.iteration == 1
    got, wanted = (torch.autograd.grad(x, pair[0], retain_graph=True)[0] for x in (value, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-9)
    # One output in a list is that output.
    single = loss([pair[0]], (pair[1],), step=1.0)
    torch.testing.assert_close(single[0] if return_stats else single, 0.5 * reference(*pair, 1.0), rtol=1e-6, atol=0)


def test_several_outputs_that_do_not_match(pair):
    sr, hr = pair
    loss = PSPLLoss()
    for a, b in (([sr], [hr, hr]), ([], []), ([sr], hr), (sr, (hr,))):
        with pytest.raises((TypeError, ValueError), match=r"sr is .* and hr is .*; expected"):
            loss(a, b)
    with pytest.raises(ValueError, match="reduction is 'none'"):
        PSPLLoss(reduction="none")([sr], [hr])
    with pytest.raises(ValueError, match="same shape"):
        loss([sr, sr], [hr, hr[:1]])
    with pytest.raises(TypeError, match="NoneType"):
        loss([sr, None], [hr, hr])


# ---------------------------------------------------------------- what a module goes through


def test_has_no_parameters_and_no_buffers():
    """Nothing for an optimizer, nothing for DDP to broadcast, nothing that moves between devices."""
    loss = PSPLLoss()
    assert list(loss.parameters()) == []
    assert list(loss.buffers()) == []
    assert list(loss.named_modules()) == [("", loss)]


def _saved(state):
    """Through a file, as torch.save and the safe loader see it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_state_dict(pair):
    """Resuming goes on at the next iteration, in the middle of one as well."""
    loss = PSPLLoss(calls_per_iteration=2)
    for _ in range(5):
        loss(*pair)
    state = loss.state_dict()
    assert list(state) == ["_extra_state"]
    resumed = PSPLLoss(calls_per_iteration=2)
    assert resumed.load_state_dict(_saved(state), strict=True) == ([], [])
    assert resumed.iteration == 3
    for other in (loss, resumed):
        other(*pair)
    assert loss.iteration == resumed.iteration == 3
    loss(*pair)
    resumed(*pair)
    assert loss.iteration == resumed.iteration == 4


def test_state_dict_is_a_copy(pair):
    """A checkpoint kept in memory is not advanced by further training."""
    loss = PSPLLoss()
    loss(*pair)
    state = loss.state_dict()
    loss(*pair)
    fresh = PSPLLoss()
    fresh.load_state_dict(state)
    assert fresh.iteration == 1


def _model():
    return nn.ModuleDict({"net": nn.Conv2d(3, 3, 1), "criterion": PSPLLoss()})


def test_old_checkpoint_loads_strictly(pair):
    """A checkpoint from before the loss was used leaves the count alone, and its strictness about the rest stands."""
    model = _model()
    model["criterion"].iteration = 7
    old = {name: value for name, value in _model().state_dict().items() if name.startswith("net")}
    assert model.load_state_dict(old, strict=True) == ([], [])
    assert model["criterion"].iteration == 7
    del old["net.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*net\.bias"):
        model.load_state_dict(old, strict=True)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**_model().state_dict(), "other": torch.zeros(1)}, strict=True)
    PSPLLoss().load_state_dict({}, strict=True)


def test_checkpoint_of_a_model(pair):
    model = _model()
    model["criterion"].iteration = 123
    other = _model()
    other.load_state_dict(_saved(model.state_dict()))
    assert other["criterion"].iteration == 123
    assert torch.equal(other["net"].weight, model["net"].weight)


def test_state_dict_survives_what_frameworks_do():
    """BasicSR and others move every value of a state dict to the CPU before saving it."""
    loss = PSPLLoss(start_iteration=5)
    state = {name: value.cpu() for name, value in loss.state_dict().items()}
    other = PSPLLoss()
    other.load_state_dict(_saved(state))
    assert other.iteration == 5


BROKEN_STATES = [
    *("text", None, 5, [5, 1, 1], {"calls": 1}),
    *(
        torch.tensor(x)
        for x in (
            -1,
            2**60,
            1.5,
            2.0,
            math.nan,
            math.inf,
            True,
            1j,
            [],
            [1, 2],
            [5, 1, 2, -3],
            [5, 1, 2, 0],
            [5, 1, 2, 3, 4],
        )
    ),
    # Of a count, iterations and calls that contradict each other.
    *(torch.tensor(x) for x in ([-1, 0, 1], [5, -1, 1], [5, 7, 2], [5, 0, 2], [5, 1, 0], [0, 3, 4], [2.0, 1.0, 1.0])),
    *(torch.full((3,), math.nan), torch.tensor(3, device="meta")),
]


@pytest.mark.parametrize("state", BROKEN_STATES, ids=lambda state: str(state).replace("\n", ""))
def test_broken_state_is_refused(state):
    loss = PSPLLoss(start_iteration=3)
    with pytest.raises(ValueError, match=r"saved.* is .*expected .*\.$|iteration is -1; expected .*\.$"):
        loss.load_state_dict({"_extra_state": state})
    assert loss.iteration == 3


@pytest.mark.parametrize("calls", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("saved_with", "loaded_with"), [(4, 1), (1, 4), (4, 4), (3, 2)])
def test_resume_with_another_number_of_calls(pair, saved_with, loaded_with, calls):
    """Iterations are what is saved. With the same number of calls, the place in the iteration too."""
    loss = PSPLLoss(calls_per_iteration=saved_with, start_iteration=1000)
    for _ in range(calls):
        loss(*pair)
    resumed = PSPLLoss(calls_per_iteration=loaded_with, start_iteration=7)
    resumed.load_state_dict(_saved(loss.state_dict()))
    assert resumed.iteration == loss.iteration == 1000 + -(-calls // saved_with)
    for other in (loss, resumed):
        other(*pair)
    begins = calls % saved_with == 0 if saved_with == loaded_with else True
    assert resumed.iteration == 1000 + -(-calls // saved_with) + begins
    if saved_with == loaded_with:
        assert resumed.iteration == loss.iteration


@pytest.mark.parametrize("calls_per_iteration", [1, 4])
def test_checkpoint_of_version_0_1(pair, calls_per_iteration):
    """It holds the number of calls, as a 0-dim tensor, and still means them."""
    loss = PSPLLoss(calls_per_iteration=calls_per_iteration)
    loss.load_state_dict(_saved({"_extra_state": torch.tensor(4002)}))
    assert loss.iteration == -(-4002 // calls_per_iteration)
    for _ in range(3):
        loss(*pair)
    assert loss.iteration == -(-4005 // calls_per_iteration)


@pytest.mark.parametrize("cast", ["half", "double", "bfloat16", "float", "cpu"])
def test_casts_leave_the_count_alone(pair, cast):
    """16777217 is the first integer that float32 does not have; float16 ends at 65504."""
    loss = getattr(PSPLLoss(start_iteration=16777216), cast)()
    loss(*pair)
    assert loss.iteration == 16777217
    assert isinstance(loss.iteration, int)
    other = PSPLLoss()
    other.load_state_dict(_saved(getattr(loss, cast)().state_dict()))
    assert other.iteration == 16777217


def test_default_device_and_dtype(pair):
    """Frameworks set these globally; the state is on the CPU and exact all the same."""
    loss = PSPLLoss(start_iteration=70001)
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            state = loss.state_dict()
            made_there = PSPLLoss()
    finally:
        torch.set_default_dtype(torch.float32)
    made_there.load_state_dict(_saved(state))
    made_there(*pair)
    assert made_there.iteration == 70002


COPIES = {"deepcopy": copy.deepcopy, "copy": copy.copy, "pickle": lambda loss: pickle.loads(pickle.dumps(loss))}


@pytest.mark.parametrize("schedule", [{"iterations_per_step": 2}, {"total_iterations": 120}], ids=str)
@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies(pair, duplicate, schedule):
    """A copy starts from the same count and goes its own way."""
    loss = PSPLLoss(distance="l2", loss_weight=0.5, **schedule)
    loss(*pair)
    twin = duplicate(loss)
    assert twin.total_iterations == loss.total_iterations
    assert twin.iteration == 1
    assert torch.equal(twin(*pair), 0.5 * reference(*pair, 1.0, distance="l2"))
    assert (twin.iteration, loss.iteration) == (2, 1)


@pytest.mark.parametrize(
    "keywords", [{}, {"use_buffers": True, "multi_avg_fn": get_ema_multi_avg_fn(0.9)}], ids=["mean", "ema"]
)
def test_averaged_model(pair, keywords):
    """An average of a model that owns its loss: neither advances the other, and its checkpoint holds its own count."""
    model = _model()
    model["criterion"](*pair)
    average = AveragedModel(model, **keywords)
    model["criterion"](*pair)
    average.update_parameters(model)
    assert average.module["criterion"].iteration == 1
    assert model["criterion"].iteration == 2
    average.module["criterion"](*pair)
    average.module["criterion"](*pair)
    average.update_parameters(model)
    assert average.module["criterion"].iteration == 3
    assert model["criterion"].iteration == 2
    again = AveragedModel(_model(), **keywords)
    again.load_state_dict(_saved(average.state_dict()))
    assert again.module["criterion"].iteration == 3


def test_to_meta_and_empty(pair):
    """Deferred initialisation moves modules without data."""
    loss = PSPLLoss(start_iteration=4).to("meta").to_empty(device="cpu")
    loss(*pair)
    assert loss.iteration == 5


def test_compiled_module(pair):
    """The schedule goes on under torch.compile, in one graph, and the count is there when the graph returns."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    loss = PSPLLoss(iterations_per_step=4, calls_per_iteration=2)
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    sr = pair[0].requires_grad_()
    for call in range(24):
        value = compiled(sr, pair[1])
        value.backward()
        assert loss.iteration == call // 2 + 1
        torch.testing.assert_close(value, reference(*pair, loss.iteration / 4), rtol=2e-6, atol=1e-30)
    assert counter.frame_count == 1
    assert PSPLLoss().load_state_dict(_saved(loss.state_dict())) == ([], [])
    assert copy.deepcopy(loss).iteration == 12
    torch._dynamo.reset()


def test_repr():
    """What differs from the paper, and how far training is."""
    text = repr(PSPLLoss(distance="l2", sigma=2.0, loss_weight=0.1, start_iteration=12, iterations_per_step=500))
    for part in ("PSPLLoss(", "distance='l2'", "sigma=2.0", "loss_weight=0.1", "iteration=12", "500"):
        assert part in text
    assert "gamma" not in text
    assert "total_iterations" not in text
    text = repr(PSPLLoss(total_iterations=600, start_iteration=12))
    assert "iteration=12, total_iterations=600" in text
    assert "iterations_per_step" not in text


@pytest.mark.parametrize(
    ("keywords", "kind", "fragments"),
    [
        ({"loss_weight": "1"}, TypeError, ["loss_weight", "str"]),
        ({"loss_weight": math.nan}, ValueError, ["loss_weight", "nan", "finite"]),
        ({"iterations_per_step": 0}, ValueError, ["iterations_per_step", "0", "above 0"]),
        ({"iterations_per_step": -5}, ValueError, ["iterations_per_step", "-5"]),
        ({"iterations_per_step": "1e3"}, TypeError, ["iterations_per_step", "str"]),
        ({"total_iterations": 0}, ValueError, ["total_iterations", "0", "at least 1"]),
        ({"total_iterations": 1e5}, TypeError, ["total_iterations", "float", "integer"]),
        (
            {"total_iterations": 600, "iterations_per_step": 1000},
            ValueError,
            ["total_iterations is 600", "iterations_per_step was given", "one of them"],
        ),
        ({"calls_per_iteration": 0}, ValueError, ["calls_per_iteration", "0", "at least 1"]),
        ({"calls_per_iteration": 1.5}, TypeError, ["calls_per_iteration", "float", "integer"]),
        ({"calls_per_iteration": True}, TypeError, ["calls_per_iteration", "bool", "integer"]),
        ({"start_iteration": -1}, ValueError, ["iteration", "-1", "at least 0"]),
        ({"start_iteration": 2.0}, TypeError, ["iteration", "float", "integer"]),
        ({"distance": "mse"}, ValueError, ["distance", "'mse'", "'l2'"]),
        ({"window_size": 4}, ValueError, ["window_size", "4", "odd"]),
        ({"backend": "gpu"}, ValueError, ["backend", "'gpu'", "'cpu'"]),
    ],
    ids=str,
)
def test_bad_keywords(keywords, kind, fragments):
    """At construction, not hours later at the first call."""
    with pytest.raises(kind) as caught:
        PSPLLoss(**keywords)
    for fragment in [*fragments, "expected"]:
        assert fragment in str(caught.value)


ASSIGNED = {
    **NOT_DEFAULT,
    **{"loss_weight": 0.5, "return_stats": True, "iterations_per_step": 500, "calls_per_iteration": 2},
    "total_iterations": 60000 // 7,
}


@pytest.mark.parametrize("name", ASSIGNED)
def test_assignment_takes_effect(pair, name):
    """As if it had been given at construction; the iteration stays."""
    common = {} if name == "distance" else {"distance": "charbonnier", "gamma": 1.5}
    loss = PSPLLoss(start_iteration=1000, **common)
    loss(*pair)
    setattr(loss, name, ASSIGNED[name])
    assert getattr(loss, name) == ASSIGNED[name]
    assert loss.iteration == 1001
    constructed = PSPLLoss(start_iteration=1001, **{**common, name: ASSIGNED[name]})
    for _ in range(3):
        values = [criterion(*pair) for criterion in (loss, constructed)]
        got, wanted = (value[0] if name == "return_stats" else value for value in values)
        assert torch.equal(got, wanted)
        assert loss.iteration == constructed.iteration
    assert repr(loss) == repr(constructed)
    assert copy.deepcopy(loss).config == pickle.loads(pickle.dumps(loss)).config == constructed.config


def test_assignment_under_compile(pair):
    """A weight that changes during training compiles again; it is not ignored."""
    torch._dynamo.reset()
    loss = PSPLLoss(start_iteration=1000)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    values = []
    for gamma in (1.0, 2.0):
        loss.gamma = gamma
        values.append(compiled(*pair, step=1.0))
    torch.testing.assert_close(values[1], 2 * values[0], rtol=1e-6, atol=0)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gamma", -1),
        ("gamma", "1"),
        ("reduction", "avg"),
        ("window_size", 4),
        ("distance", None),
        ("calls_per_iteration", 0),
        ("iterations_per_step", 0),
        ("total_iterations", 0),
    ],
)
def test_bad_assignment_is_refused(name, value):
    """With the sentence of the constructor, and without effect."""
    loss = PSPLLoss(start_iteration=3)
    before = getattr(loss, name), repr(loss)
    with pytest.raises((TypeError, ValueError), match=f"{name} is .*; expected"):
        setattr(loss, name, value)
    assert (getattr(loss, name), repr(loss)) == before


def test_bad_assignments():
    loss = PSPLLoss(start_iteration=3)
    for bad, kind in ((-1, ValueError), (1.5, TypeError), (True, TypeError), ("1", TypeError)):
        with pytest.raises(kind, match="iteration"):
            loss.iteration = bad
    with pytest.raises(AttributeError):
        loss.step = 1.0
    assert loss.iteration == 3
    with pytest.raises(TypeError):
        PSPLLoss(1.0)


# ---------------------------------------------------------------- capturable


@pytest.mark.parametrize("calls_per_iteration", [1, 3])
def test_capturable_follows_the_same_schedule(pair, calls_per_iteration):
    """Count, step and state are those of the plain module, in training and evaluation."""
    keywords = {"iterations_per_step": 4, "calls_per_iteration": calls_per_iteration, "start_iteration": 2}
    plain, capturable = PSPLLoss(**keywords), PSPLLoss(**keywords, capturable=True)
    for call in range(9):
        for module in (plain, capturable):
            module.train(call != 4)
        assert torch.equal(plain(*pair), capturable(*pair))
        assert plain.iteration == capturable.iteration
    assert torch.equal(plain.state_dict()["_extra_state"], capturable.state_dict()["_extra_state"])
    resumed = PSPLLoss(**keywords, capturable=True)
    resumed.load_state_dict(plain.state_dict())
    assert torch.equal(resumed(*pair), plain(*pair))


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_capturable_copies(pair, duplicate):
    loss = PSPLLoss(capturable=True)
    loss(*pair)
    twin = duplicate(loss)
    twin(*pair)
    assert (twin.iteration, loss.iteration) == (2, 1)


def test_capturable_keeps_its_memory(pair):
    """A captured graph knows the address of the count: nothing may replace it."""
    loss = PSPLLoss(capturable=True)
    address = loss._calls.data_ptr()
    loss(*pair)
    loss.iteration = 7
    loss.load_state_dict(PSPLLoss(start_iteration=9).state_dict())
    assert (loss._calls.data_ptr(), loss.iteration) == (address, 9)


@pytest.mark.parametrize("capturable", [False, True])
def test_compiled_graph_of_capturable_is_on_one_device(capturable, monkeypatch):
    """Inductor skips CUDA graphs where a CPU tensor is in the graph. Traced with fake CUDA tensors: no GPU is needed."""
    monkeypatch.setitem(_library.reasons, "cuda", None)
    devices = set()

    def record(graph, inputs):
        values = [node.meta.get("example_value") for node in graph.graph.nodes]
        devices.update(value.device.type for value in values if isinstance(value, torch.Tensor))
        return graph

    torch._dynamo.reset()
    loss = PSPLLoss(capturable=capturable)
    with FakeTensorMode(allow_non_fake_inputs=True):
        if capturable:
            loss._calls = torch.zeros(1, dtype=torch.int64, device="cuda")
        images = torch.empty(2, 1, 3, 8, 8, device="cuda")
        torch.compile(loss, backend=record, fullgraph=True)(*images)
    assert devices == ({"cuda"} if capturable else {"cuda", "cpu"})
