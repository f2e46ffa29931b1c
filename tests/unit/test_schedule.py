"""The schedule counts iterations, and keeps its count whatever is done to the loss."""

from __future__ import annotations

import contextlib
import copy
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
from helpers.refusals import refused
from pspl_cuda import PSPLLoss, _library
from pspl_cuda._build import numbers
from pspl_cuda.schedule import Schedule


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
    """An explicit step is used unchanged, and the count does not change."""
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
    """Begins at step 0.8, reaches 20 more after a third of the run, 60 at its end, and grows beyond it."""
    loss = PSPLLoss(total_iterations=TOTAL, calls_per_iteration=calls_per_iteration, capturable=capturable)
    torch._dynamo.reset()
    function = torch.compile(loss, backend="eager", fullgraph=True) if compiled else loss
    for call in range((TOTAL + 1) * calls_per_iteration):
        iteration = call // calls_per_iteration + 1
        torch.testing.assert_close(function(*pair), reference(*pair, 5.0 * iteration + 0.8), rtol=2e-6, atol=0)
        assert loss.step == 5 * iteration + 0.8 == {4: 20.8, 12: 60.8}.get(iteration, loss.step)
    assert loss.total_iterations == TOTAL
    torch._dynamo.reset()


@pytest.mark.parametrize("distance", ["l1", "l2", "charbonnier"])
@pytest.mark.parametrize("total", [1, 60, 300_000, 2**53])
def test_a_run_of_known_length_is_alive_from_its_first_iteration(total, distance):
    """The most similar pixels have the least weight: even they have a gradient, which Adam's eps, 1e-8, does not hide."""
    hr = torch.linspace(0.2, 0.8, 32).expand(1, 1, 32, 32)
    sr = (hr + 0.01).requires_grad_()
    loss = PSPLLoss(total_iterations=total, distance=distance, reduction="sum")
    (gradient,) = torch.autograd.grad(loss(sr, hr), sr)
    assert gradient.abs().min() > 1e-7
    # The formula is that of Eq. 8: only the step of total_iterations begins later.
    assert loss.delta == loss.alpha * loss.step + loss.beta
    assert PSPLLoss(iterations_per_step=1000).step == PSPLLoss().step == 0


@pytest.mark.parametrize(("distance", "most"), [("l1", 1.9), ("l2", 2.4)])
@pytest.mark.parametrize("total", [1200, 7200, 30_000, 300_000])
def test_adams_steps_stay_near_the_learning_rate(total, distance, most):
    """Adam divides by the root mean square of about 1000 gradients, so it makes long steps while the weights grow.

    With an error that stays as it is, its longest step is 1.8 (l2: 2.3) times the rate in a run of 30 000 iterations, its worst.
    A schedule from step 0 has 3.6 (4.0) there, and 6.1 (6.4) in a run of 300 000: networks near their limit die of it.
    """
    similarity = 0.8
    loss = PSPLLoss(total_iterations=total)

    def longest_step(first_step):
        first, second, longest = 0.0, 0.0, 0.0
        for iteration in range(1, min(total // 3, 5000)):
            delta = first_step + iteration / loss.iterations_per_step
            gradient = math.exp(-(((similarity - loss.mu) / delta) ** 2) * (2 if distance == "l2" else 1))
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            if second > 0:
                corrected = second / (1 - 0.999**iteration)
                longest = max(longest, first / (1 - 0.9**iteration) / corrected**0.5)
        return longest

    assert longest_step(loss.step) <= most
    if total >= 30_000:
        assert longest_step(0.0) > 1.5 * most, "nothing is won here"


def test_last_given_schedule_counts():
    loss = PSPLLoss(total_iterations=600)
    assert (loss.iterations_per_step, loss.step) == (10, 0.8)
    loss.iterations_per_step = 7
    assert (loss.total_iterations, loss.iterations_per_step, loss.step) == (None, 7, 0)
    loss.total_iterations = 1200
    assert (loss.total_iterations, loss.iterations_per_step, loss.step) == (1200, 20, 0.8)
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
    resumed_step = 101 / resumed.iterations_per_step + (0.8 if "total_iterations" in loaded_with else 0)
    assert torch.equal(resumed(*pair), reference(*pair, resumed_step))


BAD_CALLS = {
    "shapes": lambda loss, sr, hr: loss(sr, hr[:1]),
    "dtype": lambda loss, sr, hr: loss(sr, hr.int()),
    "not a tensor": lambda loss, sr, hr: loss(sr, None),
    "lists": lambda loss, sr, hr: loss([sr], [hr, hr]),
    "the second output": lambda loss, sr, hr: loss([sr, sr], [hr, hr[:1]]),
    "step": lambda loss, sr, hr: loss(sr, hr, step=-1.0),
}


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


def _assert_plain(schedule):
    """The count is still what Python and torch share."""
    tensor = schedule._tensor
    assert type(tensor) is torch.Tensor
    assert not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    assert not tensor.is_inference()
    assert tensor.data_ptr() == schedule._memory.buffer_info()[0]


def _in_fake_mode(loss, pair):
    with FakeTensorMode() as mode:
        loss(*(mode.from_tensor(image) for image in pair))


def _state_in_fake_mode(loss, pair):
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(image) for image in pair]
        loss.state_dict()
        loss(*fake)
        _assert_plain(loss.schedule)
        loss.iteration = 6


def _export(loss, pair):
    if numbers(torch.__version__) == (2, 4):
        pytest.skip("torch 2.4 exports no module that changes a tensor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.export(loss, pair, strict=False)


def _compiled(function):
    def run(loss, pair):
        torch._dynamo.reset()
        # torch.func.grad refuses that the count changes in it, and FakeTensorMode that compiled code has a real tensor.
        with contextlib.suppress(RuntimeError, AssertionError):
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
    _assert_plain(loss.schedule)
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
    _assert_plain(loss.schedule)
    count = loss.iteration
    twin = copy.deepcopy(loss)
    _assert_plain(twin.schedule)
    torch._dynamo.reset()
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    for call in (1, 2):
        compiled(*pair)
        assert twin.iteration == count + call
    torch._dynamo.reset()


# ---------------------------------------------------------------- the schedule alone


def counted(schedule, calls, training=True):
    """Steps of so many calls, as PSPLLoss makes them."""
    steps = []
    for _ in range(calls):
        count = schedule.calls_with_next(training)
        steps.append(schedule.step_of(count))
        schedule.record(count)
    return steps


def test_steps():
    """Eq. 8's step is a plain number, and that of the iteration which a call belongs to."""
    schedule = Schedule(iterations_per_step=4, calls_per_iteration=2, start_iteration=1)
    assert counted(schedule, 1, training=False) == [0.25]
    assert counted(schedule, 5) == [0.5, 0.5, 0.75, 0.75, 1.0]
    assert (schedule.calls, schedule.iteration, schedule.step) == (7, 4, 1.0)
    assert counted(schedule, 2, training=False) == [1.0, 1.0]
    assert all(type(step) is float for step in counted(schedule, 2))


def test_a_call_that_is_not_recorded_does_not_count():
    schedule = Schedule()
    for _ in range(3):
        assert schedule.step_of(schedule.calls_with_next(True)) == 0.001
    assert schedule.calls == 0


def test_python_and_torch_share_the_count():
    """What one writes, the other reads."""
    schedule = Schedule(start_iteration=3)
    assert schedule._tensor.tolist() == [3]
    schedule.record(schedule.calls_with_next(True))
    assert schedule._tensor.tolist() == [4]
    schedule._tensor.add_(1)
    assert schedule.calls == 5


def test_calls_during_backward_do_not_count():
    """Activation checkpointing calls the loss again there."""
    schedule = Schedule(iterations_per_step=1, start_iteration=6)
    during = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda gradient: during.extend(counted(schedule, 2)))
    x.sum().backward()
    assert during == [6.0, 6.0]
    assert counted(schedule, 1) == [7.0]


@pytest.mark.parametrize("calls", [[1, 1, 1, 1], [2, 2, 2], [2, 1], [0, 1]], ids=str)
def test_replicas_count_one_batch(calls):
    """nn.DataParallel makes new replicas for each batch and runs them in threads."""
    schedule = Schedule(start_iteration=4, iterations_per_step=1)
    for batch in range(3):
        start = schedule.calls
        replicas = [schedule.replica() for _ in calls]
        for replica, n in zip(replicas, calls, strict=True):
            assert counted(replica, n) == [start + 1.0 + i for i in range(n)]
        assert schedule.calls == 4 + (batch + 1) * max(calls)
    assert copy.deepcopy(replicas[0])._original is None


def test_replicas_of_a_capturable_schedule():
    with pytest.raises(RuntimeError, match=r"capturable=True.*nn\.DataParallel.*without capturable.*\.$"):
        Schedule(capturable=True).replica()


# ---------------------------------------------------------------- state and copies


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


@pytest.mark.parametrize("used", [0, 1, 5])
@pytest.mark.parametrize("keywords", [{}, {"total_iterations": 600}, {"calls_per_iteration": 2}], ids=str)
def test_state_has_one_size(pair, keywords, used):
    """torch.distributed.checkpoint loads into the tensors of the new module."""
    loss = PSPLLoss(**keywords)
    for _ in range(used):
        loss(*pair)
    assert loss.state_dict()["_extra_state"].shape == (4,)


OLD_STATES = {
    (5,): (5, "no total_iterations"),
    (3, 1, 1): (3, "no total_iterations"),
    (3, 1, 1, 600): (3, None),
    (3, 1, 1, 0): (3, "no total_iterations"),
    (3, 1, 1, 700): (3, "total_iterations=700"),
}


@pytest.mark.parametrize("state", OLD_STATES, ids=str)
def test_old_states(state):
    """Of every version: the calls; without and with total_iterations; all four."""
    iteration, warned = OLD_STATES[state]
    loss = PSPLLoss(total_iterations=600)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss.load_state_dict({"_extra_state": torch.tensor(state)})
    assert loss.iteration == iteration
    assert [warned in str(w.message) for w in caught] == ([True] if warned else [])


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
            [5, 1, 1, 600, 4],
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


@pytest.mark.parametrize("compiled", [False, True])
def test_capturable_with_images_without_data(pair, compiled):
    """The meta device can't hold a count."""
    loss = PSPLLoss(capturable=True, start_iteration=4, backend="reference")
    called = torch.compile(loss, backend="eager") if compiled else loss
    called(*(image.to("meta") for image in pair))
    assert (loss.iteration, loss.schedule._tensor.device.type) == (5, "cpu")
    torch._dynamo.reset()


@pytest.mark.parametrize("capturable", [False, True])
def test_to_meta_and_empty(pair, capturable):
    """Deferred initialisation moves modules without data: the count is not theirs to lose."""
    loss = PSPLLoss(start_iteration=4, capturable=capturable).to("meta")
    assert "iteration=4" in repr(loss)
    loss.to_empty(device="cpu")
    assert loss.iteration == 4
    loss(*pair)
    assert loss.iteration == 5
    assert PSPLLoss(start_iteration=7, capturable=capturable).to_empty(device="cpu").iteration == 7


def test_state_is_on_the_device_of_the_module(monkeypatch):
    """Lightning's load_from_checkpoint moves a model to the device of the first tensor in its state. (A fake GPU.)"""
    loss = PSPLLoss(start_iteration=5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        loss._apply(lambda tensor: torch.empty_like(tensor, device="cuda"))
        for module in (loss, copy.deepcopy(loss), copy.copy(loss)):
            assert module.schedule._place.device.type == "cuda"
    moved = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: moved.append(device.type) or tensor)
    assert loss.state_dict()["_extra_state"].tolist() == [5, 1, 1, 0]
    assert moved == ["cuda"]


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
    step = 1.8 if "total_iterations" in schedule else 1.0
    assert torch.equal(twin(*pair), 0.5 * reference(*pair, step, distance="l2"))
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
    address = loss.schedule._tensor.data_ptr()
    loss(*pair)
    loss.iteration = 7
    loss.load_state_dict(PSPLLoss(start_iteration=9).state_dict())
    assert (loss.schedule._tensor.data_ptr(), loss.iteration) == (address, 9)


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
            loss.schedule.to(torch.device("cuda"))
        images = torch.empty(2, 1, 3, 8, 8, device="cuda")
        torch.compile(loss, backend=record, fullgraph=True)(*images)
    assert devices == ({"cuda"} if capturable else {"cuda", "cpu"})


# ---------------------------------------------------------------- how far it counts


@pytest.mark.parametrize("name", ["start_iteration", "calls_per_iteration"])
@pytest.mark.parametrize("value", [2**53 + 1, 2**63, 10**5000], ids=["2^53", "2^63", "10^5000"])
def test_counts_too_large_to_count_on(name, value):
    """They are kept in 64 bits, and made a step of in float64."""
    refused(ValueError, ["expected an integer from", "9007199254740992"], PSPLLoss, **{name: value})


def test_iterations_times_calls_are_counted_too():
    refused(ValueError, ["iteration", "from 0 to 8192"], PSPLLoss, start_iteration=8193, calls_per_iteration=2**40)
    assert PSPLLoss(start_iteration=8192, calls_per_iteration=2**40).iteration == 8192
