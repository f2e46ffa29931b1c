"""Photographs and folders -> pairs of LR and HR images -> batches of patches.

The batch of an iteration follows from the seed and the iteration alone. So a resumed run sees the data that it would have
seen, and each of several processes takes its share of the one joint batch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from . import images
from .files import atomic
from .settings import DEMO, Settings

SUFFIXES = {".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"}
DIV2K_FIRST_VALIDATION = 801
# Changes with what a decoded copy in the cache holds: grey images with one channel, LR by images.shrink.
DECODED = 2


class Pair(NamedTuple):
    """``hr`` uint8 ``[scale h, scale w, C]`` and its ``lr`` ``[h, w, C]``, in memory or mapped from a file; C is 1 for grey."""

    name: str
    hr: np.ndarray
    lr: np.ndarray


class Source(NamedTuple):
    """Where a pair comes from; without ``lr`` it is made from ``hr``."""

    hr: Path
    lr: Path | None


class Photograph(NamedTuple):
    """A file of an installed package."""

    package: str
    file: str
    held_out: bool = False


# Photographs inside the packages, so that no network is needed. Left out: grey, synthetic and tiny images,
# the right view of the stereo pair, and the retina, mostly black.
PHOTOGRAPHS = (
    Photograph("skimage", "data/astronaut.png"),
    Photograph("skimage", "data/motorcycle_left.png"),
    Photograph("skimage", "data/ihc.png"),
    Photograph("skimage", "data/hubble_deep_field.jpg"),
    Photograph("skimage", "data/rocket.jpg"),
    Photograph("sklearn", "datasets/images/flower.jpg"),
    Photograph("skimage", "data/chelsea.png", held_out=True),
    Photograph("sklearn", "datasets/images/china.jpg", held_out=True),
    Photograph("skimage", "data/coffee.png", held_out=True),
)


def _crop(image: np.ndarray, multiple: int) -> np.ndarray:
    height, width = (size // multiple * multiple for size in image.shape[:2])
    return image[:height, :width]


def demonstration(scale: int, held_out: bool) -> list[Pair]:
    """The bundled photographs for training, or those held out. JPEGs are halved first, which loses their artefacts.

    Raises:
        SystemExit: a package is missing, or came without its photographs.
    """
    pairs = []
    for package, file, out in PHOTOGRAPHS:
        if out != held_out:
            continue
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise SystemExit(f"--data demo needs {package}: pip install 'pspl_cuda[examples]', or give a folder.")
        path = Path(spec.origin).parent / file
        if not path.is_file():
            raise SystemExit(
                f"--data demo: {path} is missing in the installed {package}; give a folder of images instead."
            )
        hr = images.read(path)
        if path.suffix == ".jpg":
            hr = images.shrink(_crop(hr, 2), 2)
        hr = _crop(hr, scale)
        pairs.append(Pair(path.stem, hr, images.shrink(hr, scale)))
    return pairs


def sources(folder: Path, scale: int) -> list[Source]:
    """The HR images of a folder, sorted, each with its LR image where there is one.

    Known layouts: images in ``folder`` itself or in ``folder/HR``, with LR images in the folder whose name has LR_bicubic in
    place of the last HR (``Set5/LR_bicubic/X2/babyx2.png``, ``DIV2K_train_LR_bicubic/X2/0001x2.png``, the suffix may lack); and
    ``folder/image_SRF_2/img_001_SRF_2_HR.png`` beside ``..._LR.png``.

    Raises:
        SystemExit: no such folder, or no images in it.
    """
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not a folder; expected a folder of HR images.")
    for place in (folder / f"image_SRF_{scale}", folder):
        found = [Source(path, _sibling(path)) for path in _files(place) if re.search(rf"_SRF_{scale}_HR$", path.stem)]
        if found:
            return found
    place = folder / "HR" if (folder / "HR").is_dir() else folder
    lr_place = place.with_name(re.sub(r"HR$", "LR_bicubic", place.name)) / f"X{scale}"
    lr_files = {path.stem: path for path in _files(lr_place)} if lr_place.parent != place else {}
    found = [Source(path, lr_files.get(f"{path.stem}x{scale}", lr_files.get(path.stem))) for path in _files(place)]
    if not found:
        raise SystemExit(f"{place} holds no images ({', '.join(sorted(SUFFIXES))}); expected HR images in it.")
    if lr_files and any(source.lr is None for source in found):
        missing = next(source.hr for source in found if source.lr is None)
        raise SystemExit(
            f"{lr_place} has no LR image for {missing.name}; complete it, or move it away to have LR made."
        )
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)


def _sibling(hr: Path) -> Path | None:
    lr = hr.with_name(re.sub(r"HR$", "LR", hr.stem) + hr.suffix)
    return lr if lr.is_file() else None


def split(folder: Path, scale: int, held_out: bool) -> list[Source]:
    """The sources for training, or those held out: whole images, never patches."""
    train, valid = folder / "DIV2K_train_HR", folder / "DIV2K_valid_HR"
    if valid.is_dir() and train.is_dir():
        return sources(valid if held_out else train, scale)
    found = sources(train if train.is_dir() else folder, scale)
    if len(found) < 2:
        raise SystemExit(f"{folder} holds one image; expected at least 2: one of them is held out for validation.")
    div2k = [source.hr.stem.isdigit() and int(source.hr.stem) >= DIV2K_FIRST_VALIDATION for source in found]
    first = div2k.index(True) if train.is_dir() and any(div2k) else len(found) - max(1, len(found) // 10)
    return found[first:] if held_out else found[:first]


def load(source: Source, scale: int) -> Pair:
    """Read a pair; HR is cropped to what LR covers.

    Raises:
        images.ImageError: an image that can't be read, or is smaller than ``scale``.
        SystemExit: LR and HR that do not belong together.
    """
    hr = images.read(source.hr)
    if source.lr is None:
        hr = _crop(hr, scale)
        if hr.size == 0:
            raise images.ImageError(f"{source.hr} is smaller than {scale} pixels.")
        return Pair(source.hr.stem, hr, images.shrink(hr, scale))
    lr = images.read(source.lr)
    if lr.shape[-1] != hr.shape[-1]:
        raise SystemExit(f"One of {source.lr} and {source.hr} is grey and the other is not; expected both alike.")
    height, width = (size * scale for size in lr.shape[:2])
    if not (0 <= hr.shape[0] - height < scale and 0 <= hr.shape[1] - width < scale):
        raise SystemExit(
            f"{source.lr} is {lr.shape[1]}x{lr.shape[0]} and {source.hr} is {hr.shape[1]}x{hr.shape[0]}; "
            f"expected {scale} times it."
        )
    return Pair(source.hr.stem, hr[:height, :width], lr)


def user_cache() -> Path:
    """pspl_cuda in the folder that the system keeps for caches of this user."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pspl_cuda"


def _cached(source: Source, scale: int, cache: Path) -> Pair:
    """As :func:`load`, decoded once and mapped from files, so that all processes share one copy in memory."""
    stamps = [
        (str(path.resolve()), path.stat().st_mtime_ns, path.stat().st_size) for path in source if path is not None
    ]
    key = f"{source.hr.stem}-x{scale}-{hashlib.sha256(repr((DECODED, stamps)).encode()).hexdigest()[:12]}"
    paths = [cache / f"{key}-{part}.npy" for part in ("hr", "lr")]
    if not all(path.is_file() for path in paths):
        _, *decoded = load(source, scale)
        for path, image in zip(paths, decoded, strict=True):
            with atomic(path) as file:
                np.save(file, np.ascontiguousarray(image))
    try:
        return Pair(source.hr.stem, *(np.load(path, mmap_mode="r") for path in paths))
    except ValueError as error:
        raise SystemExit(f"{cache} holds a damaged copy of {source.hr.name} ({error}): remove {key}-*.") from None


def _read(found: list[Source], settings: Settings, what: str, quiet: bool) -> list[Pair | images.ImageError]:
    """Every pair, or what is wrong with it."""
    cache = Path(settings.cache or user_cache())

    def pair_or_error(source: Source) -> Pair | images.ImageError:
        try:
            return _cached(source, settings.scale, cache)
        except images.ImageError as error:
            return error

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        done = pool.map(pair_or_error, found)
        return list(tqdm(done, total=len(found), desc=f"Reading {what} images", disable=quiet, leave=False))


def training_pairs(settings: Settings, quiet: bool = False) -> list[Pair]:
    """Every pair to train on. Images that can't be read or are smaller than a patch are left out, and named on stderr.

    Raises:
        SystemExit: no image is left, or LR and HR that do not belong together.
    """
    if settings.data == DEMO:
        read: list[Pair | images.ImageError] = list(demonstration(settings.scale, held_out=False))
    elif settings.validate is not None and not (Path(settings.data) / "DIV2K_train_HR").is_dir():
        read = _read(sources(Path(settings.data), settings.scale), settings, "training", quiet)
    else:
        read = _read(split(Path(settings.data), settings.scale, held_out=False), settings, "training", quiet)
    pairs, left_out = [], []
    for item in read:
        if isinstance(item, images.ImageError):
            left_out.append(str(item))
        elif min(item.hr.shape[:2]) < settings.patch:
            left_out.append(
                f"{item.name} is {item.hr.shape[1]}x{item.hr.shape[0]}, smaller than a patch of {settings.patch}."
            )
        else:
            pairs.append(item)
    if not pairs:
        raise SystemExit(f"--data {settings.data}: no image to train on is left. {' '.join(left_out)}")
    if left_out and not quiet:
        print(f"Left out {len(left_out)} of {len(read)} images:", *left_out, sep="\n  ", file=sys.stderr)
    return pairs


def validation_pairs(settings: Settings, quiet: bool = False) -> list[Pair]:
    """The pairs to validate on, the first ``validation_images`` of them.

    Raises:
        SystemExit: one that can't be read: a mean without it would be another number.
    """
    if settings.validate is not None:
        found = sources(Path(settings.validate), settings.scale)
    elif settings.data == DEMO:
        return demonstration(settings.scale, held_out=True)[: settings.validation_images]
    else:
        found = split(Path(settings.data), settings.scale, held_out=True)
    read = _read(found[: settings.validation_images], settings, "validation", quiet)
    bad = [str(item) for item in read if isinstance(item, images.ImageError)]
    if bad:
        raise SystemExit(" ".join(bad))
    return read


def detail(pairs: list[Pair], scale: int, size: int) -> Pair:
    """The most detailed ``size`` square of HR pixels of all pairs."""
    found = [images.most_detailed(pair.hr, size) for pair in pairs]
    (_, top, left), pair = max(zip(found, pairs, strict=True), key=lambda item: item[0])
    top, left, size = top // scale, left // scale, size // scale
    lr = pair.lr[top : top + size, left : left + size]
    hr = pair.hr[top * scale : (top + size) * scale, left * scale : (left + size) * scale]
    return Pair(pair.name, hr, lr)


class Batches(Dataset):
    """Iteration -> this process's share of its batch: ``lr [n, C, p, p]`` and ``hr [n, C, scale p, scale p]``, float32, 0..1."""

    def __init__(self, pairs: list[Pair], settings: Settings, channels: int, rank: int = 0, world: int = 1):
        if settings.batch % world:
            raise SystemExit(
                f"--batch {settings.batch} can't be shared by {world} processes; expected a multiple of {world}."
            )
        self.pairs = pairs
        self.settings = settings
        self.channels = channels
        share = settings.batch // world
        self.mine = range(rank * share, (rank + 1) * share)

    def __getitem__(self, iteration: int) -> tuple[Tensor, Tensor]:
        s = self.settings
        lr_patch = s.patch // s.scale
        draw = np.random.default_rng([s.seed, iteration]).random((s.batch, 6))
        lr_patches, hr_patches = [], []
        for which, row, column, *turns in draw[self.mine.start : self.mine.stop]:
            pair = self.pairs[int(which * len(self.pairs))]
            height, width = pair.lr.shape[:2]
            top, left = int(row * (height - lr_patch + 1)), int(column * (width - lr_patch + 1))
            for image, factor, patches in ((pair.lr, 1, lr_patches), (pair.hr, s.scale, hr_patches)):
                rows = slice(top * factor, (top + lr_patch) * factor)
                columns = slice(left * factor, (left + lr_patch) * factor)
                patches.append(_turn(image[rows, columns], *(turn < 0.5 for turn in turns)))
        return self._tensor(lr_patches), self._tensor(hr_patches)

    def _tensor(self, patches: list[np.ndarray]) -> Tensor:
        values = np.stack([images.luma(patch) if self.channels == 1 else images.as_rgb(patch) for patch in patches])
        return torch.from_numpy(values.astype(np.float32) / 255).permute(0, 3, 1, 2).contiguous()


def _turn(image: np.ndarray, upside_down: bool, mirrored: bool, transposed: bool) -> np.ndarray:
    """One of the eight flips and turns."""
    image = image[::-1] if upside_down else image
    image = image[:, ::-1] if mirrored else image
    return image.transpose(1, 0, 2) if transposed else image


def _ignore_interrupts(_: int) -> None:
    # Ctrl-C reaches every process of the terminal; the main one stops the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def loader(batches: Batches, iterations: Iterable[int], settings: Settings, device: torch.device) -> DataLoader:
    """The batches of ``iterations``, in order."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=iterations,
        num_workers=settings.workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_interrupts if settings.workers else None,
    )
