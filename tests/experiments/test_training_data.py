"""experiments/: folders of images -> batches; what is left out, refused or cached."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("skimage", reason="experiments/ needs pip install 'pspl_cuda[examples]'")
pytest.importorskip("lightning", reason="experiments/ needs pip install 'pspl_cuda[examples]'")

from helpers.experiments import dataset, photograph, save, settings_of, shrunken, train
from helpers.images import save_deep_rgb
from networks import bicubic
from training import data, images


def test_shares_make_the_joint_batch():
    settings = settings_of("--batch", "6", "--patch", "12", "--seed", "5", "--scale", "2")
    pairs = [data.Pair(str(i), hr := photograph(30, 34, seed=i), images.shrink(hr, 2)) for i in range(2)]
    joint = data.Batches(pairs, settings, 3)[7]
    shares = [data.Batches(pairs, settings, 3, rank, 3)[7] for rank in range(3)]
    for part, whole in enumerate(joint):
        assert torch.equal(torch.cat([share[part] for share in shares]), whole)
    assert not torch.equal(data.Batches(pairs, settings, 3)[8][0], joint[0])
    with pytest.raises(SystemExit, match="--batch 6 can't be shared by 4 processes"):
        data.Batches(pairs, settings, channels=1, rank=0, world=4)


def test_patches_fit_together():
    """Each HR patch shrinks to its LR patch, turned alike; away from the border, where bicubic sees outside."""
    settings = settings_of("--batch", "16", "--patch", "32", "--scale", "2")
    hr = photograph(64, 70)
    lr, hr = data.Batches([data.Pair("", hr, images.shrink(hr, 2))], settings, 3)[1]
    again = bicubic.shrink(hr, 2)
    inside = (..., slice(2, -2), slice(2, -2))
    # `again` lacks the two roundings of lr: half a level each, the first enlarged by the second pass, whose weights sum to 1.19.
    assert (again[inside] - lr[inside]).abs().max() <= 1.1 / 255
    assert len({patch.sum().item() for patch in lr}) > 12


def test_all_flips_and_turns_are_drawn():
    """Of one patch there are the eight symmetries of the square."""
    settings = settings_of("--batch", "64", "--patch", "16", "--scale", "2")
    hr = photograph(16, 16)
    _, patches = data.Batches([data.Pair("", hr, images.shrink(hr, 2))], settings, 3)[1]
    assert len({patch.numpy().tobytes() for patch in patches}) == 8


def test_demonstration_holds_out_whole_images():
    trained, held_out = (data.demonstration(3, held_out=flag) for flag in (False, True))
    assert len(trained) >= 5
    assert len(held_out) >= 3
    assert not {pair.name for pair in trained} & {pair.name for pair in held_out}
    for pair in trained + held_out:
        assert pair.hr.shape == (3 * pair.lr.shape[0], 3 * pair.lr.shape[1], 3)
        assert np.ptp(pair.hr.astype(int), axis=2).mean() > 5, f"{pair.name} is colourless"
    china = next(pair for pair in held_out if pair.name == "china")
    assert china.hr.shape[:2] == (213, 318), "JPEGs are halved"


def mixed_folder(folder):
    """As train291: PNG and JPEG of several sizes, one of them grey; and three images that can't be used."""
    save(photograph(40, 61), folder / "good.png")
    save(photograph(33, 30), folder / "good.jpg")
    save(photograph(30, 30)[..., 0], folder / "grey.bmp")
    save(photograph(15, 40), folder / "small.png")
    bad = save(photograph(40, 40), folder / "cut.png")
    bad.write_bytes(bad.read_bytes()[:400])
    (folder / "text.jpg").write_bytes(b"no image")
    save(photograph(40, 40)[..., 0].astype(np.uint16) * 100, folder / "deep.png")
    return folder


def test_images_that_cannot_be_used_are_named_and_left_out(tmp_path, capsys):
    folder = mixed_folder(tmp_path / "mixed")
    held = dataset(tmp_path / "held", count=2)
    settings = settings_of("--data", str(folder), "--validate", str(held), "--patch", "16", "--scale", "2")
    pairs = data.training_pairs(settings)
    assert [pair.name for pair in pairs] == ["good", "good", "grey"]
    grey = pairs[-1].hr
    assert np.array_equal(grey, photograph(30, 30)[..., :1]), "grey stays as it is"
    printed = capsys.readouterr().err
    assert "Left out 4 of 7 images" in printed
    for name, reason in [
        ("small", "40x14, smaller than a patch of 16"),
        ("cut", "can't be read"),
        ("text", "can't be read"),
    ]:
        line = next(line for line in printed.splitlines() if name in line)
        assert reason in line
    assert "more than 8 bits" in printed
    assert train(folder, tmp_path / "run", "--validate", str(held)) == 0


@pytest.mark.parametrize(
    ("mode", "suffix", "message"),
    [
        ("16-bit RGB", ".png", "more than 8 bits"),
        ("I;16", ".png", "more than 8 bits"),
        ("I;16", ".tif", "more than 8 bits"),
        ("F", ".tif", "more than 8 bits"),
        ("CMYK", ".jpg", "is in CMYK; expected grey or RGB"),
        ("CMYK", ".tif", "is in CMYK; expected grey or RGB"),
        ("LAB", ".tif", "is in LAB; expected grey or RGB"),
    ],
)
def test_images_that_would_be_read_wrong_are_refused(tmp_path, mode, suffix, message):
    path = tmp_path / f"image{suffix}"
    if mode == "16-bit RGB":
        save_deep_rgb(path)
    else:
        Image.new(mode, (8, 6), 90 if mode in ("I;16", "F") else (90, 60, 30, 0)[: len(mode)]).save(path)
    with pytest.raises(images.ImageError, match=message):
        images.read(path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_images_are_read_right(tmp_path, mode):
    """Grey has one channel, colours have three, transparency is dropped."""
    pixels = (photograph(8, 6) // 128) * 255 if mode in ("1", "P") else photograph(8, 6)
    grey = mode in ("1", "L", "LA")
    expected = pixels[..., :1] if grey else pixels
    image = Image.fromarray(expected[..., 0] if grey else expected)
    if mode in ("LA", "RGBA"):
        image.putalpha(128)
    image = image.convert(mode) if mode != "P" else image.quantize(8)
    assert image.mode == mode
    image.save(tmp_path / "image.png")
    assert np.array_equal(images.read(tmp_path / "image.png"), expected)


def test_grey_and_coloured_images_make_one_batch():
    """A network for the luma gets a grey image as it is, one for RGB three times the same."""
    grey = photograph(16, 16)[..., :1]
    settings = settings_of("--batch", "1", "--patch", "16", "--scale", "2")
    for channels in (1, 3):
        _, hr = data.Batches([data.Pair("", grey, images.shrink(grey, 2))], settings, channels)[1]
        assert sorted((hr[0] * 255).round().flatten().tolist()) == sorted(np.repeat(grey, channels).tolist())


def test_no_image_left_is_refused(tmp_path):
    folder = dataset(tmp_path / "data", size=(12, 12))
    with pytest.raises(SystemExit, match=r"no image to train on is left.*0000 is 12x12, smaller than a patch of 16"):
        train(folder, tmp_path / "run")


def test_bad_validation_image_is_refused(tmp_path, folder):
    bad = folder / "0002.png"
    bad.write_bytes(bad.read_bytes()[:400])
    with pytest.raises(SystemExit, match=r"0002\.png can't be read as an image"):
        train(folder, tmp_path / "run")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(SystemExit, match="missing is not a folder"):
        train(tmp_path / "missing", tmp_path / "run")


def test_data_folder_stays_as_it_was(tmp_path, folder):
    """Decoded images go to the user's cache, or to --cache, and are used again."""
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    train(folder, tmp_path / "run")
    cached = sorted((tmp_path / "cache" / "pspl_cuda").glob("*.npy"))
    assert len(cached) == 6, "HR and LR of three images"
    train(folder, tmp_path / "other", "--cache", str(tmp_path / "mine"))
    assert len(list((tmp_path / "mine").glob("*.npy"))) == 6
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before
    stamps = [path.stat().st_mtime_ns for path in cached]
    train(folder, tmp_path / "again")
    assert [path.stat().st_mtime_ns for path in cached] == stamps
    # A changed image is decoded anew.
    save(photograph(36, 41, seed=9), folder / "0000.png")
    os.utime(folder / "0000.png", (1, 1))
    pair = data.training_pairs(settings_of("--data", str(folder), "--patch", "16", "--scale", "2"))[0]
    assert np.array_equal(pair.hr, photograph(36, 41, seed=9)[:36, :40])


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_cache_is_named(tmp_path, folder):
    cache = tmp_path / "locked"
    cache.mkdir(mode=0o500)
    with pytest.raises(SystemExit, match="can't be written"):
        train(folder, tmp_path / "run", "--cache", str(cache))


def test_damaged_cache_is_named(tmp_path, folder):
    train(folder, tmp_path / "run")
    cached = next((tmp_path / "cache" / "pspl_cuda").glob("0000-x2-*-hr.npy"))
    cached.write_bytes(cached.read_bytes()[:100])
    with pytest.raises(SystemExit, match=r"damaged copy of 0000\.png .* remove 0000-x2-"):
        train(folder, tmp_path / "again")


def test_lr_images_are_read_where_there_are_some(tmp_path):
    """DIV2K's layout, with LR images that bicubic would not make."""
    folder = tmp_path / "DIV2K"
    for part, names in (("train", ("0001", "0002")), ("valid", ("0801",))):
        for name in names:
            hr = photograph(33, 40, seed=int(name))
            save(hr, folder / f"DIV2K_{part}_HR" / f"{name}.png")
            save(255 - shrunken(hr, 3), folder / f"DIV2K_{part}_LR_bicubic" / "X3" / f"{name}x3.png")
    trained, held_out = (data.split(folder, 3, held_out=flag) for flag in (False, True))
    assert [source.hr.name for source in trained] == ["0001.png", "0002.png"]
    assert [source.lr.name for source in held_out] == ["0801x3.png"]
    pair = data.load(trained[0], 3)
    assert pair.hr.shape == (33, 39, 3)
    assert np.array_equal(pair.lr, 255 - shrunken(pair.hr, 3))
    assert train(folder, tmp_path / "run", "--scale", "3", "--patch", "15") == 0
    with pytest.raises(SystemExit, match="expected 2 times it"):
        data.load(trained[0], 2)
    trained[1].lr.unlink()
    with pytest.raises(SystemExit, match="has no LR image for 0002"):
        data.split(folder, 3, held_out=False)


def test_detail_is_where_the_edges_are():
    """A square of stripes in one of two flat images; its LR part is the same place."""
    flat = np.full((64, 80, 3), 90, np.uint8)
    striped = flat.copy()
    striped[16:48, 40:72] = (np.arange(32) // 2 % 2 * 100)[None, :, None]
    pairs = [data.Pair(name, image, images.shrink(image, 2)) for name, image in (("flat", flat), ("striped", striped))]
    found = data.detail(pairs, scale=2, size=32)
    assert found.name == "striped"
    assert np.array_equal(found.hr, striped[16:48, 40:72])
    assert np.array_equal(found.lr, pairs[1].lr[8:24, 20:36])
    assert data.detail(pairs[:1], scale=2, size=200).hr.shape == flat.shape, (
        "an image smaller than the square: all of it"
    )


def test_last_images_are_held_out(tmp_path):
    folder = dataset(tmp_path / "data", count=12)
    assert [source.hr.stem for source in data.split(folder, 2, held_out=True)] == ["0011"]
    assert len(data.split(folder, 2, held_out=False)) == 11
    with pytest.raises(SystemExit, match="holds one image"):
        data.split(dataset(tmp_path / "one", count=1), 2, held_out=True)
