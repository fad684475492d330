"""The sheet of all mixes, on digits and on files."""

import numpy as np
import pytest
from PIL import Image

from cutmix_jax import gallery, pictures
from cutmix_jax.data import image_operations


def test_renders_digits(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    mixes = ["cutmix", "feature_cutmix", "cutout+mixup"]
    assert gallery.main(["--output", str(sheet), "--side", "32", "--mixes", *mixes]) == 0
    assert "3 mixes of 4 images" in capsys.readouterr().out
    picture = np.asarray(Image.open(sheet).convert("RGB")).astype(int)
    red = (picture[..., 0] > 180) & (picture[..., 1] < 90) & (picture[..., 2] < 90)
    assert red.sum() > 100, "boxes are outlined"


def test_renders_images_of_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        pixels = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    images, names = gallery.read_images([str(tmp_path)], 24)
    assert images.shape == (2, 24, 24, 3)
    assert names == ["cat", "dog"]
    assert pictures.describe_target(np.array([0.3, 0.7]), 0, names) == "cat 0.30\ndog 0.70"
    sheet = tmp_path / "sheet.jpg"
    flags = ["--images", str(tmp_path), "--output", str(sheet), "--mixes", "mixup", "--side", "24"]
    assert gallery.main([*flags, "--scope", "batch"]) == 0
    assert sheet.stat().st_size > 1000


def test_renders_every_operation(tmp_path, capsys):
    assert set(gallery.MAGNITUDES) == set(image_operations.OPERATIONS)
    sheet = tmp_path / "sheet.png"
    flags = ["--output", str(sheet), "--side", "16", "--count", "2", "--operations"]
    assert gallery.main(flags) == 0
    assert "16 operations of 2 images" in capsys.readouterr().out
    assert sheet.stat().st_size > 1000


WRONG = {
    "no such file": (["--images", "nowhere.png"], "nowhere.png cannot be read (No such file"),
    "an empty folder": (["--images", "."], "no images found"),
    "unknown mix": (["--mixes", "cutmx"], "There is no method 'cutmx' (the nearest are cutmix"),
    "unknown format": (["--mixes", "cutmix", "--output", "sheet.nope"], "cannot be written"),
}


@pytest.mark.parametrize(("flags", "message"), WRONG.values(), ids=WRONG)
def test_says_what_is_wrong(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert gallery.main(["--output", "sheet.png", "--side", "16", *flags]) == 1
    assert message in capsys.readouterr().err
