"""A PSPLLoss through any sequence of what trainings do to it: it counts as a plain integer would, and its step follows.

Calls in training and validation, with a step, inside activation checkpointing, in replicas of nn.DataParallel; saved, loaded from
states of every size, copied, moved; attributes assigned, also wrong values, which change nothing.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch.utils.checkpoint import checkpoint

import pspl_cuda
from fuzz.test_arguments import CONSTANTS, JUNK, LOSS, MODULE, NUMBERS, PACE
from helpers import backends
from helpers.cases import check_against_oracle
from helpers.drawn import pair_recipes
from pspl_cuda import PSPLLoss

HR = torch.linspace(0.1, 0.9, 20).reshape(1, 1, 4, 5)
SR = HR.flip(-1) + 0.05
COUNTS = st.integers(0, 2**40)
PER_ITERATION = st.integers(1, 5)
TOTALS = st.none() | st.integers(1, 10**6)
ATTRIBUTES = {**CONSTANTS, **PACE, **LOSS, **MODULE, "iteration": NUMBERS, "total_iterations": NUMBERS, "backend": JUNK}


def image():
    return SR.clone().requires_grad_()


def refusal(function, *args):
    """The sentence with which a call is refused, or None; another exception, or one without a sentence, fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a state of another total_iterations
            function(*args)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        kind, sentence = type(error), str(error)
    else:
        return None
    assert kind in (TypeError, ValueError, RuntimeError, AttributeError)
    assert sentence.endswith("."), sentence
    return sentence


class Life(RuleBasedStateMachine):
    """``calls`` is the count that ``loss`` should have, ``per_iteration`` how many of them make an iteration."""

    @initialize(iteration=COUNTS, per_iteration=PER_ITERATION, total=TOTALS)
    def born(self, iteration, per_iteration, total):
        self.loss = PSPLLoss(start_iteration=iteration, calls_per_iteration=per_iteration, total_iterations=total)
        self.calls, self.per_iteration, self.total = iteration * per_iteration, per_iteration, total

    def expected_step(self, calls):
        iteration = -(-calls // self.per_iteration)
        return iteration / 1000 if self.total is None else 0.8 + 60 * iteration / self.total

    def expected(self):
        """The gradient of the next call; the call that is counted if the loss trains."""
        self.calls += self.loss.training
        sr = image()
        return torch.autograd.grad(pspl_cuda.pspl_loss(sr, HR, self.expected_step(self.calls)), sr)[0]

    @rule(grad=st.booleans())
    def called(self, grad):
        with torch.set_grad_enabled(grad):
            loss = self.loss(sr := image(), HR)
        gradient = self.expected()
        assert not grad or torch.autograd.grad(loss, sr)[0].allclose(gradient, rtol=1e-6, atol=0)

    @rule(use_reentrant=st.booleans())
    def called_in_a_checkpoint(self, use_reentrant):
        checkpoint(self.loss, sr := image(), HR, use_reentrant=use_reentrant).backward()
        assert sr.grad.allclose(self.expected(), rtol=1e-6, atol=0)

    @rule(replicas=st.integers(1, 3))
    def called_in_replicas(self, replicas):
        """Each of them computes a part of one batch."""
        for replica in [self.loss._replicate_for_data_parallel() for _ in range(replicas)]:
            replica(SR, HR)
        self.calls += self.loss.training

    @rule(step=st.floats(0, 5), as_tensor=st.booleans())
    def called_with_a_step(self, step, as_tensor):
        if self.total is None:
            self.loss(SR, HR, torch.tensor(step) if as_tensor else step)

    @rule()
    def refused_a_call(self):
        with pytest.raises(ValueError, match="same shape"):
            self.loss(SR, HR[..., 1:])

    @rule(mode=st.booleans())
    def set_to_train(self, mode):
        self.loss.train(mode)

    @rule(iteration=COUNTS)
    def set_to_an_iteration(self, iteration):
        self.loss.iteration = iteration
        self.calls = iteration * self.per_iteration

    @rule(per_iteration=PER_ITERATION)
    def set_to_other_calls(self, per_iteration):
        self.calls = -(-self.calls // self.per_iteration) * per_iteration
        self.loss.calls_per_iteration = self.per_iteration = per_iteration

    @rule(total=st.integers(1, 10**6))
    def set_to_another_length(self, total):
        self.loss.total_iterations = self.total = total

    @rule(per_iteration=st.none() | PER_ITERATION)
    def resumed(self, per_iteration):
        """In another process, perhaps with other micro-batches: then at the begin of the next iteration."""
        per_iteration = per_iteration or self.per_iteration
        file = io.BytesIO()
        torch.save(self.loss.state_dict(), file)
        file.seek(0)
        training = self.loss.training
        self.loss = PSPLLoss(calls_per_iteration=per_iteration, total_iterations=self.total).train(training)
        self.loss.load_state_dict(torch.load(file, weights_only=True))
        if per_iteration != self.per_iteration:
            self.calls = -(-self.calls // self.per_iteration) * per_iteration
        self.per_iteration = per_iteration

    @rule(calls=COUNTS, form=st.sampled_from([(), (1,)]))
    def resumed_from_version_0_1(self, calls, form):
        assert refusal(self.loss.load_state_dict, {"_extra_state": torch.tensor(calls).reshape(form)}) is None
        self.calls = calls

    @rule(numbers=st.lists(st.integers(-2, 5), max_size=6))
    def resumed_from_any_numbers(self, numbers):
        """A valid state, or a sentence and no change."""
        if refusal(self.loss.load_state_dict, {"_extra_state": torch.tensor(numbers, dtype=torch.int64)}):
            return
        if len(numbers) == 1:
            self.calls = numbers[0]
            return
        iteration, calls, per_iteration = numbers[:3]
        self.calls = iteration * self.per_iteration
        if iteration and per_iteration == self.per_iteration:
            self.calls -= per_iteration - calls

    @rule(duplicate=st.sampled_from([copy.copy, copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))]))
    def copied(self, duplicate):
        """What is done to the original does not concern the copy."""
        original, self.loss = self.loss, duplicate(self.loss)
        original.iteration = 77

    @rule(to=st.sampled_from([torch.float16, torch.float64, "cpu", "meta"]))
    def moved(self, to):
        self.loss.to(to)

    @rule(data=st.data(), name=st.sampled_from(sorted(ATTRIBUTES)))
    def assigned(self, data, name):
        """Any value to any attribute, on a copy: it is taken, or refused with a sentence and without effect."""
        loss = copy.deepcopy(self.loss)
        before = repr(loss)
        if refusal(setattr, loss, name, data.draw(ATTRIBUTES[name] | JUNK)):
            assert repr(loss) == before
        else:
            loss.load_state_dict(loss.state_dict())
            assert repr(copy.deepcopy(loss)) == repr(loss)

    @invariant()
    def counts_as_a_plain_integer_would(self):
        schedule = self.loss.schedule
        assert schedule.calls == schedule._tensor.item() == self.calls  # compiled code uses the tensor
        assert self.loss.iteration == -(-self.calls // self.per_iteration)
        assert self.loss.step == pytest.approx(self.expected_step(self.calls), rel=1e-12)


TestLife = Life.TestCase
TestLife.settings = settings(stateful_step_count=30)


@given(
    recipe=pair_recipes(dtypes=(torch.float16, torch.bfloat16, torch.float32), largest=(2, 2, 16, 20)),
    step=st.floats(1e-3, 0.7),
    scale=st.integers(0, 16).map(lambda power: 2.0**power),
    distance=st.sampled_from(["l1", "l2", "charbonnier"]),
    reduction=st.sampled_from(["mean", "sum"]),
)
def test_first_steps_under_a_loss_scale(recipe, step, scale, distance, reduction):
    """Where the attention is tiny and a GradScaler multiplies: a gradient of 16 bits is rounded once."""
    if why_not := backends.why_not("cpu"):
        pytest.skip(why_not)
    check_against_oracle(backends.Backend("cpu"), *recipe.make(), step, scale, distance=distance, reduction=reduction)
