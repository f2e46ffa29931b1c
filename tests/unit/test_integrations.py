"""Each plug-in without its framework, and under a stand-in if PyPI lacks the framework (tests/frameworks has the others)."""

from __future__ import annotations

import importlib
import logging
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import pspl_cuda.integrations
from helpers import framework_stubs as stubs
from helpers.framework_docs import PAGE, snippet
from pspl_cuda import PSPLLoss, pspl_loss
from pspl_cuda.integrations._plugin import generator_updates

# Framework's top package, and what its sentence must name.
PLUGINS = {
    "basicsr": ("basicsr", "BasicSR", "pip install basicsr"),
    "neosr": ("neosr", "neosr", "repository"),
    "trainner_redux": ("traiNNer", "traiNNer-redux", "repository"),
    "kair": ("utils", "KAIR", "repository"),
    "mmagic": ("mmengine", "MMEngine", "pip install mmengine"),
    "lightning": ("lightning", "Lightning", "pip install lightning"),
    "transformers": ("transformers", "transformers", "pip install transformers"),
}
# They import nothing of their framework.
WITHOUT_IMPORT = {"accelerate", "edsr_pytorch"}


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


# A framework of the BasicSR family: plug-in, stand-in, its heading in the docs.
FAMILY = {
    "neosr": ("neosr", stubs.neosr, "neosr"),
    "traiNNer-redux, weights in its losses": ("trainner_redux", lambda: stubs.trainner_redux(False), "traiNNer-redux"),
    "traiNNer-redux, weights in its loop": ("trainner_redux", lambda: stubs.trainner_redux(True), "traiNNer-redux"),
}


@pytest.fixture(params=FAMILY.values(), ids=FAMILY)
def family(request, plugin):
    """(function from loss options to a model in float32, plug-in, modules)"""
    name, stub, _ = request.param
    model_class, modules = stub()
    module = plugin(name, modules)

    def model(**options):
        return model_class({"type": "PSPLLoss", "loss_weight": 1.0, **options}, amp=False)

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


def test_every_plugin_is_installed_tested_and_documented():
    folder = Path(pspl_cuda.__file__).parent / "integrations"
    plugins = {path.stem for path in folder.glob("[!_]*.py")}
    assert plugins == {*PLUGINS, *WITHOUT_IMPORT}
    listed = (folder / "__init__.py").read_text()
    documented = PAGE.read_text()
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
    """Nothing of a loss is saved: the model's resumed iteration becomes the loss's."""
    make, _, _ = family
    model = make(calls_per_iteration=2)
    for _ in range(4):
        model.optimize_parameters(*batch)
    state = model.training_state(iteration=2)
    resumed = make(calls_per_iteration=2)
    with caplog.at_level(logging.INFO):
        resumed.resume_training(state)
    assert "continues after iteration 2" in caplog.text
    for iteration in (3, 3, 4):
        resumed.optimize_parameters(*batch)
        assert loss_of(resumed).iteration == iteration
    # The framework's own part of resuming still happens.
    with pytest.raises(KeyError):
        make().resume_training({"iter": 2})


def test_family_resume_of_a_late_start(family, batch):
    """start_iteration is where the training began."""
    model = family[0](start_iteration=5000)
    model.resume_training(model.training_state(iteration=2))
    assert loss_of(model).iteration == 5002


def test_family_imported_again(family):
    """Imported again, reloaded, or imported afresh by something that emptied sys.modules: registered and patched once."""
    make, module, modules = family
    importlib.reload(module)
    del sys.modules[module.__name__]
    importlib.import_module(module.__name__)
    (model_class,) = (vars(m)[name] for m in modules.values() for name in ("base", "BaseModel") if hasattr(m, name))
    assert not hasattr(model_class.resume_training.__wrapped__, "__wrapped__")
    model = make()
    model.resume_training(model.training_state(iteration=2))
    assert loss_of(model).iteration == 2


@pytest.mark.parametrize(("name", "stub", "heading"), FAMILY.values(), ids=FAMILY)
def test_family_file_and_options_of_the_docs(name, stub, heading, plugin, monkeypatch):
    """It registers the loss, and does nothing where pspl_cuda is missing."""
    model_class, modules = stub()
    file = snippet(heading, "py")
    with monkeypatch.context() as missing:
        missing.setitem(sys.modules, f"pspl_cuda.integrations.{name}", None)
        exec(file, {})
    with pytest.raises(KeyError, match="No object named"):
        model_class({"type": "PSPLLoss", "loss_weight": 1.0})
    plugin(name, modules)
    exec(file, {})
    if heading == "neosr":
        options = pytest.importorskip("tomllib").loads(snippet(heading, "toml"))["train"]["pixel_opt"]
    else:
        (options,) = yaml.safe_load(snippet(heading, "yaml"))["losses"]
    assert isinstance(loss_of(model_class(options)), PSPLLoss)


@pytest.mark.parametrize(("name", "stub", "heading"), FAMILY.values(), ids=FAMILY)
def test_family_imported_where_there_are_no_models_yet(name, stub, heading, plugin, batch):
    """The loss trains; the warning says that it can't resume."""
    model_class, modules = stub()
    (base,) = (module for module in modules if module.split(".")[-1] in ("base", "base_model"))
    with pytest.warns(UserWarning, match="can't restore its iteration when training resumes.*Import the plug-in where"):
        plugin(name, {**modules, base: None})
    model = model_class({"type": "PSPLLoss", "loss_weight": 1.0}, amp=False)
    model.optimize_parameters(*batch)
    assert loss_of(model).iteration == 1


@pytest.mark.parametrize("every", [1, 2, 3, 7])
@pytest.mark.parametrize("after", [0, 1, 2, 6, 7, 100])
def test_generator_updates(every, after):
    """The condition in BasicSR's and KAIR's GAN models, counted."""
    updates = [i for i in range(1, 51) if i % every == 0 and i > after]
    for done in range(51):
        assert generator_updates(done, every, after) == sum(i <= done for i in updates)


def test_resume_finds_each_loss_once(plugin):
    """A model may hold one loss in two places."""
    model_class, modules = stubs.neosr()
    plugin("neosr", modules)
    model = model_class({"type": "PSPLLoss", "loss_weight": 1.0})
    model.cri_again = {"pix": model.cri_pix}
    model.resume_training(model.training_state(iteration=7))
    assert model.cri_pix.iteration == 7


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


@pytest.mark.parametrize(("name", "stub", "heading"), FAMILY.values(), ids=FAMILY)
def test_a_foreign_loss_of_that_name_is_not_hidden(name, stub, heading, plugin):
    modules = stub()[1]
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


def test_redux_documented_options(plugin, batch):
    """They replace charbonnierloss of the framework's templates: sqrt(d^2 + 1e-12), weight 1, once the weights have grown."""
    (options,) = yaml.safe_load(snippet("traiNNer-redux", "yaml"))["losses"]
    model_class, modules = stubs.trainner_redux(weighted_by_loop=True)
    plugin("trainner_redux", modules)
    model = model_class({**options, "start_iteration": 100 * options["total_iterations"]}, amp=False)
    total = model.optimize_parameters(*batch)
    plain = (model.output - batch[1]).square().add(1e-12).sqrt().mean()
    torch.testing.assert_close(total, plain, rtol=1e-3, atol=0)


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


@pytest.fixture
def edsr_loss():
    return stubs.edsr(snippet("EDSR-PyTorch", "py"))


def _edsr_args(loss="1*PSPL", precision="single"):
    return Namespace(loss=loss, precision=precision, rgb_range=255)


def test_edsr_weighs_and_sums(batch, edsr_loss):
    sr, hr = (255 * x for x in batch)
    loss = edsr_loss(_edsr_args("0.5*PSPL+2*L1"))
    loss.loss_module[0].iteration = 999
    expected = 0.5 * pspl_loss(sr, hr, 1.0, data_range=255.0) + 2 * (sr - hr).abs().mean()
    torch.testing.assert_close(loss(sr, hr), expected, rtol=1e-6, atol=0)


def test_edsr_resumes(batch, tmp_path, edsr_loss):
    """Its checkpoints hold the loss's state."""
    loss = edsr_loss(_edsr_args())
    for _ in range(3):
        loss(*batch)
    loss.save(tmp_path)
    resumed = edsr_loss(_edsr_args(), tmp_path)
    resumed(*batch)
    assert resumed.loss_module[0].iteration == 4


def test_edsr_half_precision(batch, edsr_loss):
    """``--precision half`` halves losses and images of 0..255."""
    sr, hr = ((255 * x).half() for x in batch)
    loss = edsr_loss(_edsr_args(precision="half"))
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


def _kair_options(folder, model="plain", **train):
    train = {"G_lossfn_type": "pspl", "G_lossfn_weight": 0.5, **train}
    return stubs.NoneDict(path=stubs.NoneDict(models=str(folder)), train=stubs.NoneDict(train), model=model)


def test_kair_trains_and_resumes(plugin, batch, tmp_path):
    """It weights by G_lossfn_weight, and resumes at the iteration in the name of the last checkpoint."""
    plugin("kair", stubs.kair())
    plain = stubs.kair_plain(snippet("KAIR", "py"))
    model = plain(_kair_options(tmp_path, G_pspl={"iterations_per_step": 2, "distance": "l2"}))
    model.optimize_parameters(*batch, 1)
    total = model.optimize_parameters(*batch, 2)
    expected = 0.5 * pspl_loss(model.E, batch[1], 1.0, distance="l2")
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    for done in (2, 10):
        (tmp_path / f"{done}_G.pth").touch()
    resumed = plain(_kair_options(tmp_path, D_update_ratio=2))  # of a GAN: it has no meaning here
    resumed.optimize_parameters(*batch, 11)
    assert resumed.G_lossfn.iteration == 11
    late = plain(_kair_options(tmp_path, G_pspl={"start_iteration": 500}))
    assert late.G_lossfn.iteration == 510


def test_kair_resumes_a_gan(plugin, batch, tmp_path):
    """The loss continues after as many iterations as it had seen at the checkpoint."""
    plugin("kair", stubs.kair())
    gan = stubs.kair_gan(snippet("KAIR", "py", 1))
    options = _kair_options(tmp_path, "gan", D_init_iters=3, D_update_ratio=2)
    model = gan(options)
    for step in range(1, 10):
        model.optimize_parameters(*batch, step)
    assert model.G_lossfn.iteration == 3  # steps 4, 6 and 8
    (tmp_path / "9_G.pth").touch()
    resumed = gan(options)
    for step, iteration in ((10, 4), (11, 4), (12, 5)):
        resumed.optimize_parameters(*batch, step)
        assert resumed.G_lossfn.iteration == iteration
