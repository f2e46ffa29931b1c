"""Each plug-in under the call protocol of its framework, and under the framework itself where it is installed."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pspl_cuda.integrations
from helpers import framework_stubs as stubs
from pspl_cuda import PSPLLoss, pspl_loss

DOCS = Path(__file__).parents[2] / "docs" / "frameworks.md"
# Framework's top package, and what its sentence must name.
PLUGINS = {
    "basicsr": ("basicsr", "BasicSR", "pip install basicsr"),
    "neosr": ("neosr", "neosr", "repository"),
    "trainner_redux": ("traiNNer", "traiNNer-redux", "repository"),
    "kair": ("utils", "KAIR", "repository"),
    "mmagic": ("mmengine", "MMEngine", "pip install mmengine"),
    "lightning": ("lightning", "Lightning", "pip install lightning"),
}


def _under(root):
    return [name for name in sys.modules if name == root or name.startswith(f"{root}.")]


@pytest.fixture
def plugin(monkeypatch):
    """Import a plug-in afresh while ``modules`` stand for its framework; afterwards everything is as it was."""

    def import_plugin(name, modules):
        for module in _under(PLUGINS[name][0]):
            monkeypatch.delitem(sys.modules, module)
        for module, content in modules.items():
            monkeypatch.setitem(sys.modules, module, content)
        full = f"pspl_cuda.integrations.{name}"
        # Set only for monkeypatch to remember what was there.
        monkeypatch.setattr(pspl_cuda.integrations, name, None, raising=False)
        monkeypatch.setitem(sys.modules, full, None)
        del sys.modules[full]
        return importlib.import_module(full)

    return import_plugin


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand((2, 2, 3, 12, 13), generator=generator).unbind()


# A framework of the BasicSR family: plug-in, stand-in, keywords of its model, and of a model in float32.
FAMILY = {
    "BasicSR": ("basicsr", stubs.basicsr, {}),
    "neosr": ("neosr", stubs.neosr, {"amp": False}),
    "traiNNer-redux, weights in its losses": (
        "trainner_redux",
        lambda: stubs.trainner_redux(weighted_by_loop=False),
        {"amp": False},
    ),
    "traiNNer-redux, weights in its loop": (
        "trainner_redux",
        lambda: stubs.trainner_redux(weighted_by_loop=True),
        {"amp": False},
    ),
}


@pytest.fixture(params=FAMILY.values(), ids=FAMILY)
def family(request, plugin):
    """(function from loss options to a model, plug-in, modules)"""
    name, stub, keywords = request.param
    model_class, modules = stub()
    module = plugin(name, modules)

    def model(**options):
        return model_class({"type": "PSPLLoss", "loss_weight": 1.0, **options}, **keywords)

    return model, module, modules


def loss_of(model) -> PSPLLoss:
    (loss,) = [x for x in [*vars(model).values(), *getattr(model, "losses", {}).values()] if isinstance(x, PSPLLoss)]
    return loss


# ---------------------------------------------------------------- every plug-in


@pytest.mark.parametrize("name", PLUGINS)
def test_without_the_framework(name, plugin):
    """One sentence on the framework, what to do, and that the loss works without."""
    root, framework, remedy = PLUGINS[name]
    missing = {root: None, "pytorch_lightning": None}
    with pytest.raises(ImportError) as caught:
        plugin(name, missing)
    for fragment in (framework, remedy, "from pspl_cuda import PSPLLoss"):
        assert fragment in str(caught.value)


def _stub_modules(name):
    stub = {
        "basicsr": lambda: stubs.basicsr()[1],
        "neosr": lambda: stubs.neosr()[1],
        "trainner_redux": lambda: stubs.trainner_redux(True)[1],
        "kair": stubs.kair,
        "mmagic": stubs.mmengine,
        "lightning": stubs.lightning,
    }
    return stub[name]()


@pytest.mark.parametrize("name", PLUGINS)
def test_importing_twice(name, plugin):
    """Imported again, reloaded, or imported afresh by something that emptied sys.modules."""
    module = plugin(name, _stub_modules(name))
    assert importlib.import_module(module.__name__) is module
    importlib.reload(module)
    del sys.modules[module.__name__]
    importlib.import_module(module.__name__)


def test_every_plugin_is_installed_tested_and_documented():
    folder = Path(pspl_cuda.__file__).parent / "integrations"
    plugins = {path.stem for path in folder.glob("[!_]*.py")}
    assert plugins == {*PLUGINS, "edsr_pytorch"}
    listed = (folder / "__init__.py").read_text()
    documented = DOCS.read_text()
    for name in plugins:
        assert f"``{name}``" in listed
        assert f"integrations.{name}" in documented or f"integrations import {name}" in documented
    assert '"pspl_cuda.integrations"' in (Path(__file__).parents[2] / "pyproject.toml").read_text()


# ---------------------------------------------------------------- BasicSR, neosr, traiNNer-redux


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_family_weight_is_applied_once(family, batch, weight):
    """In the loss or in the loop, whichever the framework does: the step is trained with the weight, once."""
    model = family[0](loss_weight=weight, start_iteration=1499, distance="l2")
    total = model.optimize_parameters(*batch)
    expected = weight * pspl_loss(model.output, batch[1], 1.5, distance="l2")
    torch.testing.assert_close(total.detach().reshape(()), expected.detach(), rtol=1e-6, atol=0)
    (logged,) = model.log_dict.values()
    assert float(logged) == pytest.approx(expected.item(), rel=1e-6)


def test_family_counts_iterations(family, batch):
    model = family[0](iterations_per_step=2)
    for iteration in (1, 2, 3):
        model.optimize_parameters(*batch)
        assert loss_of(model).iteration == iteration
    assert loss_of(model).step == 1.5


def test_family_accumulation(family, batch):
    """One call per micro-batch: calls_per_iteration says how many make an iteration."""
    model = family[0](calls_per_iteration=3)
    for _ in range(7):
        model.optimize_parameters(*batch)
    assert loss_of(model).iteration == 3


def test_family_resume(family, batch, caplog):
    """Nothing of a loss is saved: the model's resumed iteration becomes the loss's, in the middle of nothing."""
    make, _, _ = family
    model = make(calls_per_iteration=2)
    for _ in range(4):
        model.optimize_parameters(*batch)
    state = model.training_state(iteration=2)
    resumed = make(calls_per_iteration=2)
    with caplog.at_level(logging.INFO):
        resumed.resume_training(state)
    assert "continues after iteration 2" in caplog.text
    assert loss_of(resumed).iteration == 2
    resumed.optimize_parameters(*batch)
    assert loss_of(resumed).iteration == 3
    resumed.optimize_parameters(*batch)
    assert loss_of(resumed).iteration == 3
    # The framework's own part of resuming still happens.
    with pytest.raises(KeyError):
        make().resume_training({"iter": 2})


def test_family_explicit_start_wins(family):
    make, _, _ = family
    model = make(start_iteration=5000)
    model.resume_training(model.training_state(iteration=2))
    assert loss_of(model).iteration == 5000


def test_family_resume_is_wrapped_once(family):
    make, module, modules = family
    make()
    importlib.reload(module)
    make()
    path, name = module.PSPLLoss.model_class
    inner = getattr(modules[path], name).resume_training.__wrapped__
    assert not hasattr(inner, "__wrapped__")


def test_family_plugin_imported_by_a_half_imported_framework(family, monkeypatch, batch):
    """A file in the framework's losses folder may import the plug-in before the framework has any models."""
    make, module, modules = family
    path, _ = module.PSPLLoss.model_class
    monkeypatch.delitem(sys.modules, path)
    importlib.reload(module)
    with pytest.warns(UserWarning, match="can't restore its iteration when training resumes.*start_iteration"):
        model = make()
    model.optimize_parameters(*batch)
    assert loss_of(model).iteration == 1
    monkeypatch.setitem(sys.modules, path, modules[path])
    model = make()
    model.resume_training(model.training_state(iteration=7))
    assert loss_of(model).iteration == 7


@pytest.mark.parametrize(
    ("options", "kind", "fragment"),
    [
        ({"iterations_per_step": "1e3"}, TypeError, "iterations_per_step is of type str"),  # YAML reads 1e3 as text
        ({"reduction": "avg"}, ValueError, "reduction is 'avg'"),
        ({"aplha": 1.0}, TypeError, "aplha"),
    ],
    ids=str,
)
def test_family_bad_options(family, options, kind, fragment):
    with pytest.raises(kind, match=fragment):
        family[0](**options)


@pytest.mark.parametrize("name", ["basicsr", "neosr", "trainner_redux"])
def test_a_foreign_loss_of_that_name_is_not_hidden(name, plugin):
    modules = _stub_modules(name)
    registry = next(vars(m)["LOSS_REGISTRY"] for m in modules.values() if hasattr(m, "LOSS_REGISTRY"))
    registry.register(type("PSPLLoss", (nn.Module,), {}))
    with pytest.raises(AssertionError, match="already registered"):
        plugin(name, modules)


def test_redux_name_in_any_case(plugin):
    model_class, modules = stubs.trainner_redux(weighted_by_loop=True)
    module = plugin("trainner_redux", modules)
    for name in ("PSPLLoss", "psplloss"):
        model = model_class({"type": name, "loss_weight": 1.0})
        assert list(model.losses) == ["l_g_pspl"]
        assert type(model.losses["l_g_pspl"]) is module.PSPLLoss


def test_redux_negative_weight(plugin, batch):
    """Its sign chooses the upscaled input as target, made in inference mode; its size is the factor."""
    model_class, modules = stubs.trainner_redux(weighted_by_loop=True)
    plugin("trainner_redux", modules)
    model = model_class({"type": "psplloss", "loss_weight": -0.5, "start_iteration": 999}, amp=False)
    total = model.optimize_parameters(*batch)
    expected = 0.5 * pspl_loss(model.output, batch[0], 1.0)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=0)  # bicubic to the same size is not quite the identity
    assert total > 0
    assert model.net_g.weight.grad.abs().sum() > 0


def test_redux_compiled_loss(plugin, batch):
    """Some versions compile their losses: counted, weighted and resumed all the same."""
    torch._dynamo.reset()
    model_class, modules = stubs.trainner_redux(weighted_by_loop=True)
    plugin("trainner_redux", modules)
    options = {"type": "psplloss", "loss_weight": 0.5, "iterations_per_step": 2}
    model = model_class(options, compile=True, amp=False)
    model.resume_training(model.training_state(iteration=3))
    total = model.optimize_parameters(*batch)
    assert model.losses["l_g_pspl"].iteration == 4
    torch.testing.assert_close(total, 0.5 * pspl_loss(model.output, batch[1], 2.0), rtol=2e-6, atol=0)
    torch._dynamo.reset()


@pytest.mark.parametrize("stub", [stubs.neosr, lambda: stubs.trainner_redux(True)], ids=["neosr", "traiNNer-redux"])
def test_family_under_autocast(plugin, batch, stub):
    """bfloat16 outputs against float32 targets: a finite float32 loss, and a gradient for the network."""
    model_class, modules = stub()
    plugin("neosr" if stub is stubs.neosr else "trainner_redux", modules)
    model = model_class({"type": "PSPLLoss", "loss_weight": 1.0, "start_iteration": 999})
    total = model.optimize_parameters(*batch)
    assert model.output.dtype == torch.bfloat16
    assert total.dtype == torch.float32
    expected = pspl_loss(model.output.float(), batch[1], 1.0)
    torch.testing.assert_close(total.detach().reshape(()), expected.detach(), rtol=1e-6, atol=0)
    assert model.net_g.weight.grad.isfinite().all()
    assert model.net_g.weight.grad.abs().sum() > 0


# ---------------------------------------------------------------- EDSR-PyTorch, KAIR


def _branch_in_docs(keyword):
    """The branch that the docs tell a user to add, without its indentation."""
    (block,) = [b for b in re.findall(r"^```text\n(.*?)^```", DOCS.read_text(), re.M | re.S) if keyword in b]
    lines = [line.strip() for line in block.splitlines() if line.strip() and not line.strip().startswith(("#", "--"))]
    return lines[next(i for i, line in enumerate(lines) if line.startswith("elif")) :]


@pytest.mark.parametrize("keyword", ["edsr_pytorch.build", "kair.build"])
def test_documented_branch_is_the_tested_one(keyword):
    tested = [line.strip() for line in Path(stubs.__file__).read_text().splitlines()]
    branch = [line.replace("'", '"') for line in _branch_in_docs(keyword)]
    assert len(branch) == 3
    start = tested.index(branch[0])
    assert [line for line in tested[start : start + 4] if line] == branch


def _edsr_args(loss="1*PSPL", precision="single"):
    return Namespace(loss=loss, precision=precision, rgb_range=255)


def test_edsr_weighs_and_sums(batch):
    sr, hr = (255 * x for x in batch)
    loss = stubs.EDSRLoss(_edsr_args("0.5*PSPL+2*L1"))
    loss.loss_module[0].iteration = 999
    expected = 0.5 * pspl_loss(sr, hr, 1.0, data_range=255.0) + 2 * (sr - hr).abs().mean()
    torch.testing.assert_close(loss(sr, hr), expected, rtol=1e-6, atol=0)


def test_edsr_resumes(batch, tmp_path):
    """Its checkpoints hold the loss's state."""
    loss = stubs.EDSRLoss(_edsr_args())
    for _ in range(3):
        loss(*batch)
    loss.save(tmp_path)
    resumed = stubs.EDSRLoss(_edsr_args(), tmp_path)
    resumed(*batch)
    assert resumed.loss_module[0].iteration == 4


def test_edsr_half_precision(batch):
    """``--precision half`` halves losses and images of 0..255."""
    sr, hr = ((255 * x).half() for x in batch)
    loss = stubs.EDSRLoss(_edsr_args(precision="half"))
    loss.loss_module[0].iteration = 70_000 - 1
    value = loss(sr.requires_grad_(), hr)
    value.backward()
    assert loss.loss_module[0].iteration == 70_000
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, pspl_loss(sr.float(), hr.float(), 70.0, data_range=255.0), rtol=1e-6, atol=0)
    assert sr.grad.isfinite().all()


def test_edsr_keywords():
    from pspl_cuda.integrations import edsr_pytorch

    loss = edsr_pytorch.build(_edsr_args(), distance="l2", data_range=1.0)
    assert (loss.config.distance, loss.config.data_range) == ("l2", 1.0)


def _kair_options(folder, **train):
    train = {"G_lossfn_type": "pspl", "G_lossfn_weight": 0.5, **train}
    return stubs.NoneDict(path=stubs.NoneDict(models=str(folder)), train=stubs.NoneDict(train))


def test_kair_trains_and_resumes(plugin, batch, tmp_path):
    """It weights by G_lossfn_weight, and resumes at the iteration in the name of the last checkpoint."""
    plugin("kair", stubs.kair())
    model = stubs.KAIRModelPlain(_kair_options(tmp_path, G_pspl={"iterations_per_step": 2, "distance": "l2"}))
    model.optimize_parameters(*batch)
    total = model.optimize_parameters(*batch)
    expected = 0.5 * pspl_loss(model.E, batch[1], 1.0, distance="l2")
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    for done in (2, 10):
        (tmp_path / f"{done}_G.pth").touch()
    resumed = stubs.KAIRModelPlain(_kair_options(tmp_path))
    resumed.optimize_parameters(*batch)
    assert resumed.G_lossfn.iteration == 11
    chosen = stubs.KAIRModelPlain(_kair_options(tmp_path, G_pspl={"start_iteration": 500}))
    assert chosen.G_lossfn.iteration == 500


# ---------------------------------------------------------------- MMEngine


def _build_pixel_loss(registry_module, batch):
    # As mmagic/registry.py makes its own.
    registry = registry_module.Registry("model", parent=registry_module.MODELS, locations=[], scope="mmagic")
    loss = registry.build({"type": "PSPLLoss", "loss_weight": 0.5, "reduction": "mean", "start_iteration": 999})
    assert isinstance(loss, PSPLLoss)
    assert torch.equal(loss(*batch), 0.5 * pspl_loss(*batch, 1.0))


def test_mmagic_stub(plugin, batch):
    modules = stubs.mmengine()
    plugin("mmagic", modules)
    _build_pixel_loss(modules["mmengine.registry"], batch)


def test_mmagic_foreign_loss_of_that_name(plugin):
    modules = stubs.mmengine()
    modules["mmengine.registry"].MODELS.register_module(name="PSPLLoss", module=nn.L1Loss)
    with pytest.raises(KeyError, match="already registered"):
        plugin("mmagic", modules)


def test_mmengine_itself(batch, tmp_path, monkeypatch):
    """Its registry, a training with its runner and an EMA copy, and the resumed one: the count is in the checkpoint."""
    registry = pytest.importorskip("mmengine.registry", reason="mmengine is not installed", exc_type=ImportError)
    # Its 0.10.7 loads its own checkpoints only so (docs/frameworks.md).
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    import pspl_cuda.integrations.mmagic  # noqa: F401

    _build_pixel_loss(registry, batch)

    class Editor(BaseModel):
        """mmagic's BaseEditModel in short."""

        def __init__(self):
            super().__init__()
            self.generator = nn.Conv2d(3, 3, 3, padding=1)
            self.pixel_loss = registry.MODELS.build({"type": "PSPLLoss", "loss_weight": 1.0})
            self.seen = []

        def forward(self, inputs, data_samples=None, mode="tensor"):
            feats = self.generator(torch.stack(inputs))
            if mode == "predict":
                self.pixel_loss(feats, torch.stack(inputs))
                return []
            loss = self.pixel_loss(feats, torch.stack(data_samples))
            self.seen.append(self.pixel_loss.iteration)
            return {"loss": loss}

    def train(iterations, **keywords):
        data = [{"inputs": batch[0][0], "data_samples": batch[1][0]}] * 4
        loader = {"batch_size": 2, "num_workers": 0, "sampler": {"type": "DefaultSampler", "shuffle": False}}
        runner = Runner(
            Editor(),
            str(tmp_path),
            train_dataloader={"dataset": data, **loader},
            train_cfg={"by_epoch": False, "max_iters": iterations},
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 1e-3}},
            default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 2, "by_epoch": False}},
            custom_hooks=[{"type": "EMAHook"}],
            default_scope="mmengine",
            log_level="ERROR",
            experiment_name=f"pspl_{iterations}",
            **keywords,
        )
        runner.train()
        return runner.model

    assert train(4).seen == [1, 2, 3, 4]
    assert train(6, resume=True).seen == [5, 6]


# ---------------------------------------------------------------- Lightning


class Steps:
    """The training_step and validation_step of a user's LightningModule: the steps that its losses saw."""

    def __init__(self):
        super().__init__()
        self.network = nn.Conv2d(3, 3, 3, padding=1)
        self.criterion = PSPLLoss(beta=1.0)
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        x = torch.full((1, 3, 8, 8), 0.5)
        loss = self.criterion(self.network(x), x)
        self.seen.append(self.criterion.iteration)
        return loss

    def validation_step(self, batch, batch_idx):
        x = torch.full((1, 3, 8, 8), 0.5)
        self.criterion(self.network(x), x)
        self.validated.append(self.criterion.iteration)


class StubModule(Steps, nn.Module):
    pass


def test_lightning_stub(plugin):
    """The trainer's steps: also where an epoch's last has fewer micro-batches, when resumed, and for a GAN's two optimizers."""
    module = plugin("lightning", stubs.lightning())
    user = StubModule()
    stubs.LightningTrainer([module.PSPLSchedule()], accumulate_grad_batches=2).fit(user, 2, 3)
    assert user.seen == [1, 1, 2, 3, 3, 4]
    assert user.validated == [2, 4]
    user = StubModule()
    stubs.LightningTrainer([module.PSPLSchedule()], global_step=100).fit(user, 1, 2)
    assert user.seen == [101, 102]
    user = StubModule()
    stubs.LightningTrainer([module.PSPLSchedule(2)], steps_per_batch=2).fit(user, 1, 3)
    assert user.seen == [1, 2, 3]


def test_lightning_several_calls_in_a_batch(plugin):
    """calls_per_iteration is the calls in one batch; accumulation is the trainer's."""
    module = plugin("lightning", stubs.lightning())

    class TwoOutputs(StubModule):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            return super().training_step(batch, batch_idx)

    user = TwoOutputs()
    user.criterion = PSPLLoss(calls_per_iteration=2)
    stubs.LightningTrainer([module.PSPLSchedule()], accumulate_grad_batches=2).fit(user, 1, 4)
    assert user.seen == [1, 1, 1, 1, 2, 2, 2, 2]


def test_lightning_without_a_loss(plugin):
    module = plugin("lightning", stubs.lightning())
    user = StubModule()
    del user.criterion
    with pytest.raises(ValueError, match="StubModule contains no PSPLLoss; expected one as an attribute"):
        stubs.LightningTrainer([module.PSPLSchedule()]).fit(user, 1, 1)
    for bad, kind in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(kind, match="optimizer_steps_per_iteration"):
            module.PSPLSchedule(bad)


def test_lightning_itself(tmp_path):
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed", exc_type=ImportError)
    from pspl_cuda.integrations.lightning import PSPLSchedule

    class Module(Steps, pl.LightningModule):
        def configure_optimizers(self):
            return torch.optim.SGD(self.network.parameters(), lr=1e-3)

    def fit(epochs, checkpoint=None):
        module = Module()
        trainer = pl.Trainer(
            max_epochs=epochs,
            accumulate_grad_batches=2,
            callbacks=[PSPLSchedule()],
            default_root_dir=tmp_path,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=1,
        )
        data = torch.utils.data.DataLoader(torch.zeros(3, 1))
        trainer.fit(module, data, torch.utils.data.DataLoader(torch.zeros(1, 1)), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        assert trainer.global_step == module.criterion.iteration
        return module

    module = fit(2)
    assert module.seen == [1, 1, 2, 3, 3, 4]
    assert module.validated == [0, 2, 4]
    assert fit(3, tmp_path / "last.ckpt").seen == [5, 5, 6]


# ---------------------------------------------------------------- BasicSR itself


OPTIONS = """
name: tiny
model_type: SRModel
scale: 2
num_gpu: 0
manual_seed: 0
datasets:
  train: {{name: tiny, type: PairedImageDataset, dataroot_gt: {root}/gt, dataroot_lq: {root}/lq, io_backend: {{type: disk}},
    gt_size: 32, use_hflip: true, use_rot: true, num_worker_per_gpu: 0, batch_size_per_gpu: 2, dataset_enlarge_ratio: 100}}
  val: {{name: tiny, type: PairedImageDataset, dataroot_gt: {root}/gt, dataroot_lq: {root}/lq, io_backend: {{type: disk}}}}
network_g: {{type: MSRResNet, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 1, upscale: 2}}
path: {{pretrain_network_g: ~, strict_load_g: true, resume_state: ~}}
train:
  ema_decay: 0.9
  optim_g: {{type: Adam, lr: !!float 1e-4}}
  scheduler: {{type: MultiStepLR, milestones: [100], gamma: 0.5}}
  total_iter: {iterations}
  warmup_iter: -1
  pixel_opt: {{type: PSPLLoss, loss_weight: !!float 0.5, reduction: mean, beta: 1}}
val: {{val_freq: 2, save_img: false, metrics: {{psnr: {{type: calculate_psnr, crop_border: 2, test_y_channel: false}}}}}}
logger: {{print_freq: 1, save_checkpoint_freq: 4, use_tb_logger: false}}
"""


def test_basicsr_itself(tmp_path, monkeypatch):
    """Its own train pipeline on four small images, with validation and EMA, and its own resume."""
    reason = "BasicSR is not installed, or not in a state to be imported (docs/frameworks.md)"
    pytest.importorskip("basicsr", reason=reason, exc_type=ImportError)
    import cv2
    from basicsr.train import train_pipeline

    from pspl_cuda.integrations import basicsr

    for name, size in (("gt", 48), ("lq", 24)):
        (tmp_path / name).mkdir()
        for index in range(4):
            image = np.random.default_rng(index).integers(0, 256, (12, 12, 3)).astype(np.uint8)
            cv2.imwrite(str(tmp_path / name / f"{index}.png"), cv2.resize(image, (size, size)))
    if not torch.cuda.is_available():
        # Its resume function takes every checkpoint to a GPU.
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.UntypedStorage, "cuda", lambda storage, device: storage)
    seen = []
    original = basicsr.PSPLLoss.forward

    def forward(self, *images):
        loss = original(self, *images)
        assert torch.equal(loss, 0.5 * pspl_loss(*images, self.step, beta=1.0))
        seen.append(self.iteration)
        return loss

    monkeypatch.setattr(basicsr.PSPLLoss, "forward", forward)

    def train(iterations, *arguments):
        (tmp_path / "tiny.yml").write_text(OPTIONS.format(root=tmp_path, iterations=iterations))
        monkeypatch.setattr(sys, "argv", ["train.py", "-opt", str(tmp_path / "tiny.yml"), *arguments])
        seen.clear()
        train_pipeline(str(tmp_path))
        return list(seen)

    monkeypatch.chdir(tmp_path)
    assert train(5) == [1, 2, 3, 4, 5]
    assert train(6, "--auto_resume") == [5, 6]
