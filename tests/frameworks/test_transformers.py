"""transformers' own Trainer: accumulation, a short last step, evaluation, resume, bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from helpers.framework_docs import snippet
from pspl_cuda import PSPLLoss
from pspl_cuda.integrations.transformers import PSPLSchedule

pytestmark = pytest.mark.frameworks

BATCHES = 7  # no multiple of the 3 that make an optimizer step: each epoch has 3 steps, the last of one batch


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, lr_images):
        return self.body(lr_images)


class Recorded(PSPLLoss):
    def __init__(self):
        super().__init__(beta=1.0)
        self.seen, self.dtypes = [], set()

    def forward(self, sr, hr):
        loss = super().forward(sr, hr)
        if torch.is_grad_enabled():
            self.seen.append(self.iteration)
            self.dtypes.add((sr.dtype, hr.dtype, loss.dtype))
        return loss


PAIRS = [{"lr_images": torch.rand(3, 8, 8), "hr_images": torch.rand(3, 8, 8)} for _ in range(BATCHES)]


class EvaluatedTrainer(Trainer):
    def __init__(self, *args, **keywords):
        super().__init__(*args, eval_dataset=PAIRS[:2], **keywords)


def train(folder, *, resume=None, epochs=2, modify=lambda trainer: None, **arguments):
    """The trainer in the docs; returns its loss and itself."""
    names = {
        "Trainer": EvaluatedTrainer,
        "criterion": Recorded(),
        "model": Network(),
        "arguments": TrainingArguments(
            str(folder),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=3,
            num_train_epochs=epochs,
            remove_unused_columns=False,
            label_names=["hr_images"],
            save_strategy="steps",
            save_steps=2,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            **arguments,
        ),
        "dataset": PAIRS,
    }
    exec(snippet("transformers", "py"), names)
    modify(names["trainer"])
    names["trainer"].train(resume_from_checkpoint=resume)
    return names["criterion"], names["trainer"]


def test_short_last_step_of_an_epoch(tmp_path):
    """Also with evaluations, whose calls do not move the schedule."""
    criterion, trainer = train(tmp_path, eval_strategy="steps", eval_steps=1)
    assert criterion.seen == [1, 1, 1, 2, 2, 2, 3, 4, 4, 4, 5, 5, 5, 6]
    assert trainer.state.global_step == 6


def test_resume(tmp_path):
    """The checkpoint of step 4 lies in the middle of the second epoch."""
    train(tmp_path)
    criterion, _ = train(tmp_path, resume=str(tmp_path / "checkpoint-4"))
    assert criterion.seen == [5, 5, 5, 6]


def test_bfloat16(tmp_path):
    criterion, trainer = train(tmp_path, epochs=1, bf16=True)
    assert criterion.seen == [1, 1, 1, 2, 2, 2, 3]
    assert {dtypes[-1] for dtypes in criterion.dtypes} == {torch.float32}
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


def test_gradient_is_the_mean_over_the_step(tmp_path):
    """The trainer divides the loss by the micro-batches of its step, 3 or 1."""
    divided = []

    def record(trainer):
        backward = trainer.accelerator.backward
        trainer.accelerator.backward = lambda loss, **keywords: (
            divided.append(loss.item()),
            backward(loss, **keywords),
        )
        compute_loss = trainer.compute_loss

        def compute(*args, **keywords):
            loss = compute_loss(*args, **keywords)
            divided.append(-loss.item())
            return loss

        trainer.compute_loss = compute

    train(tmp_path, epochs=1, modify=record)
    ratios = [-computed / used for computed, used in zip(divided[::2], divided[1::2], strict=True)]
    assert ratios == pytest.approx([3, 3, 3, 3, 3, 3, 1])


def test_loss_of_the_model(tmp_path):
    """Found without being named."""
    model = Network()
    model.criterion = PSPLLoss()
    schedule = PSPLSchedule()
    schedule.on_train_begin(None, None, None, model=model)
    assert schedule.losses == [model.criterion]


def test_without_a_loss():
    with pytest.raises(ValueError, match="Network contains no PSPLLoss; expected one as an attribute"):
        PSPLSchedule().on_train_begin(None, None, None, model=Network())
