"""Stand-ins for the training frameworks that PyPI does not have. Each contains only the code that uses a loss.

Each names the commit whose behaviour it copies. The frameworks that PyPI has are tested themselves, in tests/frameworks.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


def _modules(**contents: dict) -> dict[str, ModuleType]:
    """Modules for sys.modules by dotted name (``__`` for the dot), parents included."""
    found: dict[str, ModuleType] = {}
    for key, names in contents.items():
        dotted = key.replace("__", ".")
        for end in [i for i, c in enumerate(dotted) if c == "."] + [len(dotted)]:
            found.setdefault(dotted[:end], ModuleType(dotted[:end]))
        vars(found[dotted]).update(names)
    return found


class Registry:
    """The registry of the BasicSR family: a name can be registered once."""

    def __init__(self, ignore_case: bool = False):
        self._obj_map = {}
        self._key = str.lower if ignore_case else str

    def register(self, obj):
        key = self._key(obj.__name__)
        assert key not in self._obj_map, f"An object named '{key}' was already registered in 'loss' registry!"
        self._obj_map[key] = obj

    def get(self, name):
        if self._key(name) not in self._obj_map:
            raise KeyError(f"No object named '{name}' found in 'loss' registry!")
        return self._obj_map[self._key(name)]

    def __contains__(self, name):
        return self._key(name) in self._obj_map

    def build_loss(self, options):
        options = dict(options)
        return self.get(options.pop("type"))(**options)


class Model:
    """A model with its network. Its training state contains the iteration and no state of the losses."""

    def __init__(self):
        self.net_g = nn.Conv2d(3, 3, 3, padding=1)
        self.optimizer_g = torch.optim.SGD(self.net_g.parameters(), lr=1e-3)
        self.log_dict = {}

    def training_state(self, iteration):
        return {"epoch": 0, "iter": iteration, "optimizers": [self.optimizer_g.state_dict()], "schedulers": []}

    def resume_training(self, resume_state):
        self.optimizer_g.load_state_dict(*resume_state["optimizers"])


def neosr():
    """neosr 31c7022: models/base.py, models/image.py."""
    registry = Registry()

    class base(Model):  # noqa: N801
        pass

    class image(base):  # noqa: N801
        def __init__(self, loss, accumulate=1, amp=True):
            super().__init__()
            self.accum_iters, self.amp = accumulate, amp
            self.cri_pix = registry.build_loss(loss).to("cpu", memory_format=torch.channels_last, non_blocking=True)

        def optimize_parameters(self, lq, gt):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.amp):
                self.output = torch.clamp(self.net_g(lq), 1 / 255, 1)
                l_g_total = torch.zeros(1)
                l_g_pix = self.cri_pix(self.output, gt)
                l_g_total += l_g_pix
            loss = l_g_total.detach().clone()
            l_g_total /= self.accum_iters
            l_g_total.backward()
            if torch.isnan(l_g_total):
                raise ValueError("NaN found, aborting training.")
            self.log_dict = {"l_g_pix": l_g_pix.mean().item()}
            return loss

    return image, _modules(neosr__utils__registry={"LOSS_REGISTRY": registry}, neosr__models__base={"base": base})


def trainner_redux(weighted_by_loop: bool):
    """traiNNer-redux: models/sr_model.py and losses/basic_loss.py of 5e52432, or of 68629319, whose loop applies the weight."""
    registry = Registry(ignore_case=True)

    class L1Loss(nn.Module):
        def __init__(self, loss_weight, reduction="mean"):
            super().__init__()
            self.loss_weight = loss_weight

        def forward(self, pred, target, weight=None, **kwargs):
            return (1 if weighted_by_loop else self.loss_weight) * F.l1_loss(pred, target)

    registry.register(L1Loss)

    class BaseModel(Model):
        pass

    class SRModel(BaseModel):
        def __init__(self, *losses, accum_iter=1, amp=True, compile=False):
            super().__init__()
            self.accum_iters, self.amp = accum_iter, amp
            self.losses = {}
            for loss in losses:
                assert "loss_weight" in loss, f"{loss['type']} must define loss_weight"
                label = f"l_g_{loss['type'].lower().replace('loss', '')}"
                self.losses[label] = registry.build_loss(loss).to("cpu", memory_format=torch.channels_last)
                if compile:
                    self.losses[label] = torch.compile(self.losses[label], backend="eager")

        def optimize_parameters(self, lq, gt):
            lq, gt = (x.to(memory_format=torch.channels_last) for x in (lq, gt))
            with torch.autocast("cpu", torch.bfloat16, enabled=self.amp):
                self.output = self.net_g(lq)
                l_g_total = torch.tensor(0.0)
                for label, loss in self.losses.items():
                    target = gt
                    if weighted_by_loop and loss.loss_weight < 0:
                        with torch.inference_mode():
                            target = torch.clamp(F.interpolate(lq, gt.shape[2:], mode="bicubic", antialias=True), 0, 1)
                    l_g_loss = loss(self.output, target)
                    if weighted_by_loop:
                        l_g_loss = l_g_loss * abs(loss.loss_weight)
                    l_g_total += l_g_loss / self.accum_iters
                    self.log_dict[label] = l_g_loss.detach()
            if not l_g_total.isfinite():
                raise RuntimeError("Training failed: NaN/Inf found in loss.")
            l_g_total.backward()
            return l_g_total * self.accum_iters

    return SRModel, _modules(
        traiNNer__utils__registry={"LOSS_REGISTRY": registry},
        traiNNer__losses__basic_loss={"L1Loss": L1Loss},
        traiNNer__models__base_model={"BaseModel": BaseModel},
    )


def _with_branch(source: str, branch: str) -> str:
    """``source`` with the branch of docs/frameworks.md in the place of its comment, indented as the docs indent it."""
    return textwrap.dedent(source).replace("# the branch of the docs\n", branch)


def edsr(branch: str):
    """EDSR-PyTorch 9d3bb0e: ``Loss`` of src/loss/__init__.py, whose checkpoints contain the state of its losses."""
    source = """
    class Loss(nn.modules.loss._Loss):
        def __init__(self, args, apath=None):
            super().__init__()
            self.loss = []
            self.loss_module = nn.ModuleList()
            for loss in args.loss.split('+'):
                weight, loss_type = loss.split('*')
                if loss_type == 'MSE':
                    loss_function = nn.MSELoss()
                elif loss_type == 'L1':
                    loss_function = nn.L1Loss()
    # the branch of the docs
                self.loss.append({'type': loss_type, 'weight': float(weight), 'function': loss_function})
                self.loss_module.append(loss_function)
            if args.precision == 'half':
                self.loss_module.half()
            if apath is not None:
                self.load_state_dict(torch.load(Path(apath) / 'loss.pt'))

        def forward(self, sr, hr):
            return sum(part['weight'] * part['function'](sr, hr) for part in self.loss)

        def save(self, apath):
            torch.save(self.state_dict(), Path(apath) / 'loss.pt')
    """
    names = {"nn": nn, "torch": torch, "Path": Path}
    exec(_with_branch(source, branch), names)
    return names["Loss"]


class NoneDict(dict):
    """KAIR fc1732f: utils/utils_option.py."""

    def __missing__(self, key):
        return None


def kair():
    """KAIR fc1732f: utils/utils_option.py."""

    def find_last_checkpoint(save_dir, net_type="G", pretrained_path=None):
        names = [path.name for path in Path(save_dir).glob(f"*_{net_type}.pth")]
        init_iter = max((int(re.match(r"(\d+)_", name)[1]) for name in names), default=0)
        return init_iter, f"{save_dir}/{init_iter}_{net_type}.pth" if names else pretrained_path

    return _modules(utils__utils_option={"find_last_checkpoint": find_last_checkpoint})


class _KAIRModel:
    def __init__(self, opt):
        self.opt, self.opt_train, self.device = opt, opt["train"], "cpu"
        self.netG = nn.Conv2d(3, 3, 3, padding=1)
        self.define_loss()


def _kair_class(name: str, source: str, branch: str):
    names = {"nn": nn, "_KAIRModel": _KAIRModel}
    exec(_with_branch(source, branch), names)
    return names[name]


def kair_plain(branch: str):
    """KAIR fc1732f: ``ModelPlain`` of models/model_plain.py."""
    source = """
    class ModelPlain(_KAIRModel):
        def define_loss(self):
            G_lossfn_type = self.opt_train['G_lossfn_type']
            if G_lossfn_type == 'l1':
                self.G_lossfn = nn.L1Loss().to(self.device)
    # the branch of the docs
            else:
                raise NotImplementedError(G_lossfn_type)
            self.G_lossfn_weight = self.opt_train['G_lossfn_weight']

        def optimize_parameters(self, low, high, current_step):
            self.E = self.netG(low)
            G_loss = self.G_lossfn_weight * self.G_lossfn(self.E, high)
            G_loss.backward()
            return G_loss
    """
    return _kair_class("ModelPlain", source, branch)


def kair_gan(branch: str):
    """KAIR fc1732f: ``ModelGAN`` of models/model_gan.py, without its discriminator."""
    source = """
    class ModelGAN(_KAIRModel):
        def define_loss(self):
            if self.opt_train['G_lossfn_weight'] > 0:
                G_lossfn_type = self.opt_train['G_lossfn_type']
                if G_lossfn_type == 'l1':
                    self.G_lossfn = nn.L1Loss().to(self.device)
    # the branch of the docs
                else:
                    raise NotImplementedError(G_lossfn_type)
                self.G_lossfn_weight = self.opt_train['G_lossfn_weight']
            self.D_update_ratio = self.opt_train['D_update_ratio'] if self.opt_train['D_update_ratio'] else 1
            self.D_init_iters = self.opt_train['D_init_iters'] if self.opt_train['D_init_iters'] else 0

        def optimize_parameters(self, low, high, current_step):
            self.E = self.netG(low)
            if current_step % self.D_update_ratio == 0 and current_step > self.D_init_iters:
                G_loss = self.G_lossfn_weight * self.G_lossfn(self.E, high)
                G_loss.backward()
    """
    return _kair_class("ModelGAN", source, branch)
