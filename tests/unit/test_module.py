"""PSPLLoss counts iterations, and keeps its count whatever is done to the module."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import pspl_cuda
from pspl_cuda import PSPLLoss, _library, config


def reference(sr, hr, step, **keywords):
    return pspl_cuda.pspl_loss(sr, hr, step, **keywords)


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


def test_repr():
    """What differs from the defaults, all of it, and how far training is."""
    assert repr(PSPLLoss()) == "PSPLLoss(iteration=0, iterations_per_step=1000)"
    keywords = {**NOT_DEFAULT, "return_stats": True, "loss_weight": 0.1, "calls_per_iteration": 2, "capturable": True}
    text = repr(PSPLLoss(**keywords, start_iteration=12, total_iterations=600))
    for name, value in keywords.items():
        assert f"{name}={value!r}, " in text
    assert text.endswith(", iteration=12, total_iterations=600)")
    assert eval(text.replace("iteration=12", "start_iteration=12"), {"PSPLLoss": PSPLLoss}).extra_repr() in text


@pytest.mark.parametrize(
    ("keywords", "kind", "fragments"),
    [
        ({"loss_weight": "1"}, TypeError, ["loss_weight", "str"]),
        ({"loss_weight": math.nan}, ValueError, ["loss_weight", "nan", "finite"]),
        ({"iterations_per_step": 0}, ValueError, ["iterations_per_step", "0", "above 0"]),
        ({"iterations_per_step": -5}, ValueError, ["iterations_per_step", "-5"]),
        ({"iterations_per_step": "1e3"}, TypeError, ["iterations_per_step", "str"]),
        ({"total_iterations": 0}, ValueError, ["total_iterations", "0", "at least 1"]),
        ({"total_iterations": 1e5 + 0.5}, ValueError, ["total_iterations", "100000.5", "integer"]),
        ({"total_iterations": "3e5"}, TypeError, ["total_iterations", "str", "integer"]),
        (
            {"total_iterations": 600, "iterations_per_step": 1000},
            ValueError,
            ["total_iterations is 600", "iterations_per_step was given", "one of them"],
        ),
        (
            {"total_iterations": torch.ones(2), "iterations_per_step": 1000},
            TypeError,
            ["total_iterations is of type Tensor", "integer"],
        ),
        ({"calls_per_iteration": 0}, ValueError, ["calls_per_iteration", "0", "at least 1"]),
        ({"calls_per_iteration": 1.5}, ValueError, ["calls_per_iteration", "1.5", "integer"]),
        ({"calls_per_iteration": math.nan}, ValueError, ["calls_per_iteration", "nan", "integer"]),
        ({"calls_per_iteration": True}, TypeError, ["calls_per_iteration", "bool", "integer"]),
        ({"start_iteration": -1}, ValueError, ["start_iteration is -1", "at least 0"]),
        ({"start_iteration": 2.5}, ValueError, ["start_iteration is 2.5", "integer"]),
        ({"start_iteration": math.inf}, ValueError, ["start_iteration is inf", "integer"]),
        ({"loss_weight": 1e-45}, ValueError, ["loss_weight is 1e-45", "1e-37"]),
        ({"loss_weight": -1e38}, ValueError, ["loss_weight is -1e+38", "1e+37"]),
        ({"loss_weight": torch.tensor(1.0)}, TypeError, ["loss_weight", "Tensor", "number"]),
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
        ("loss_weight", math.nan),
        ("loss_weight", None),
        ("loss_weight", 1e-45),
        ("loss_weight", torch.ones((), requires_grad=True)),
        ("loss_weight", nn.Parameter(torch.ones(()))),  # nn.Module registers it, and a Module, past the attribute
        ("gamma", nn.Identity()),
        ("return_stats", "no"),
        ("return_stats", 1),
        ("backend", "gpu"),
        ("backend", None),
    ],
)
def test_bad_assignment_is_refused(name, value):
    """With the sentence of the constructor, and without effect."""
    loss = PSPLLoss(start_iteration=3)
    before = getattr(loss, name), repr(loss)
    with pytest.raises((TypeError, ValueError), match=f"{name} is .*; expected"):
        setattr(loss, name, value)
    assert (getattr(loss, name), repr(loss)) == before


@pytest.mark.parametrize("name", ["start_iteration", "capturable", "step", "delta"])
def test_what_cannot_be_assigned(name):
    """It would have no effect, so it says what has."""
    loss = PSPLLoss(start_iteration=3)
    with pytest.raises(
        AttributeError, match=rf"^{name} of PSPLLoss can't be assigned\. (Assign iteration|Pass it).*\.$"
    ):
        setattr(loss, name, 1)
    assert loss.iteration == 3
    assert not loss.capturable


def test_an_unavailable_backend_is_refused_at_assignment(monkeypatch):
    monkeypatch.setitem(_library.reasons, "cuda", "it was not built.")
    loss = PSPLLoss()
    with pytest.raises(RuntimeError, match=r"backend is 'cuda', but .*it was not built\."):
        loss.backend = "cuda"
    assert loss.backend == "auto"


def test_bad_iterations():
    loss = PSPLLoss(start_iteration=3)
    for bad, kind in ((-1, ValueError), (1.5, ValueError), (True, TypeError), ("1", TypeError)):
        with pytest.raises(kind, match="iteration"):
            loss.iteration = bad
    assert loss.iteration == 3
    with pytest.raises(TypeError):
        PSPLLoss(1.0)


NUMPY = {
    **{name: np.float32(0.5) for name in ("alpha", "beta", "gamma", "mu", "sigma", "eps", "loss_weight")},
    **{name: np.float64(0.5) for name in ("data_range", "k1", "k2", "iterations_per_step")},
    **{"window_size": np.int64(7), "calls_per_iteration": np.int32(2), "start_iteration": np.uint8(7)},
    "total_iterations": np.int64(600),
}


@pytest.mark.parametrize("name", NUMPY)
def test_numbers_of_numpy(pair, name):
    """They come from configurations and from arithmetic on arrays, and mean what Python's do."""
    python = NUMPY[name].item()
    losses = [PSPLLoss(**{"distance": "charbonnier", name: value}) for value in (NUMPY[name], python)]
    assert torch.equal(*(loss(*pair) for loss in losses))
    assert repr(losses[0]) == repr(losses[1])
    if name != "start_iteration":
        setattr(losses[0], name, NUMPY[name])
        assert type(getattr(losses[0], name)) is type(python)


@pytest.mark.parametrize("name", ["total_iterations", "calls_per_iteration", "start_iteration"])
def test_counts_that_yaml_reads_as_floats(name):
    """YAML reads 3.0e+5 as a float, and 3e5 as text."""
    loss = PSPLLoss(**{name: 3.0e5})
    count = loss.iteration if name == "start_iteration" else getattr(loss, name)
    assert (count, type(count)) == (300_000, int)


def test_step_that_is_a_count_of_iterations(pair):
    """5000 as a step means five million iterations."""
    for call in (pspl_cuda.pspl_loss, PSPLLoss()):
        for step in (5000, np.int64(5000)):
            with pytest.warns(UserWarning, match=r"step is 5000, .*thousand iterations.* Pass iteration / 1000"):
                call(*pair, step)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in (60, 999, 5000.0, math.inf, 10**9):
            pspl_cuda.pspl_loss(*pair, step)
        PSPLLoss(iterations_per_step=1, start_iteration=5000)(*pair)


def test_every_keyword_is_described():
    """help(PSPLLoss) and help(pspl_loss) are complete."""
    for function in (PSPLLoss, pspl_cuda.pspl_loss):
        for name in inspect.signature(function).parameters:
            assert re.search(rf"^ +{name}: ", function.__doc__, re.MULTILINE), name


class Network(nn.Module):
    """A network that only holds its loss."""

    def __init__(self, criterion):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)
        self.criterion = criterion

    def forward(self, x):
        return self.layer(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "keywords", [{}, {"total_iterations": 600, "capturable": True, "return_stats": True, "distance": "l2"}], ids=str
)
def test_torchscript_of_a_module_that_holds_the_loss(keywords):
    """torch.jit.script compiles every module inside, whether the network calls it or not."""
    network, x = Network(PSPLLoss(**keywords)), torch.rand(1, 3, 4, 4)
    scripted = torch.jit.script(network)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    for other in (scripted, torch.jit.load(file)):
        assert torch.equal(other(x), network(x))


def test_torchscript_is_told_of_every_property():
    properties = {name for name, _ in inspect.getmembers(PSPLLoss, lambda member: isinstance(member, property))}
    assert properties == set(PSPLLoss.__jit_unused_properties__)
