"""Every source reads a file like Pillow, or refuses it by name. All find the same files."""

import contextlib
import importlib.metadata
import io
import os
import pathlib
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cutmix_jax import UserError, gallery
from cutmix_jax.data import find_set, folder, image_files, open_data, records
from cutmix_jax.evals import ood

from .conftest import photograph

SIDE = 24
RGB = photograph(0, SIDE, SIDE)
GRAY = RGB[..., 1]
BLACK_OR_WHITE = np.where(GRAY > 127, np.uint8(255), np.uint8(0))


def encode(image, kind, **options):
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def as_palette(image):
    """Four colors, and the pixels that they decode to."""
    picture = Image.fromarray(image).quantize(4)
    return picture, np.asarray(picture.convert("RGB"))


def chunk(name, data, crc=None):
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def with_chunk(png, piece, before=b"IDAT"):
    place = png.index(before) - 4
    return png[:place] + piece + png[place:]


def deep_png(color, channels):
    """16 bits per channel, which Pillow only writes for gray."""
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 16, color, 0, 0, 0)
    rows = SIDE * (b"\0" + bytes(2 * SIDE * channels))
    body = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return image_files.PNG_START + b"".join(chunk(*part) for part in body)


def deep_tiff():
    """16 bits per channel in color, uncompressed."""
    tags = [(256, SIDE), (257, SIDE), (258, 16), (262, 2), (273, 200), (277, 3), (278, SIDE)]
    tags.append((279, SIDE * SIDE * 6))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    # BitsPerSample has one value per channel. They follow after the entries.
    entries = entries.replace(
        struct.pack("<HHII", 258, 4, 1, 16), struct.pack("<HHII", 258, 3, 3, 180)
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return (
        head.ljust(180, b"\0")
        + struct.pack("<HHH", 16, 16, 16).ljust(20, b"\0")
        + bytes(SIDE**2 * 6)
    )


def repeated(gray):
    return np.repeat(gray[..., None], 3, -1)


def one_bit(kind):
    return encode(Image.fromarray(GRAY).convert("1", dither=0), kind)


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


PALETTE, PALETTE_PIXELS = as_palette(RGB)
PNG = encode(RGB, "png")
# The bytes and the pixels: the encoded ones if the format is lossless, otherwise Pillow's.
READ = {
    "jpeg": (encode(RGB, "jpeg"), None),
    "progressive jpeg": (encode(RGB, "jpeg", progressive=True), None),
    "gray jpeg": (encode(GRAY, "jpeg"), None),
    "cmyk jpeg": (encode(Image.fromarray(RGB).convert("CMYK"), "jpeg"), None),
    "png": (PNG, RGB),
    "gray png": (encode(GRAY, "png"), repeated(GRAY)),
    "palette png": (encode(PALETTE, "png"), PALETTE_PIXELS),
    "palette png with transparency": (
        encode(PALETTE, "png", transparency=b"\0\x80"),
        PALETTE_PIXELS,
    ),
    "1-bit png": (one_bit("png"), repeated(BLACK_OR_WHITE)),
    "png with alpha": (encode(np.dstack([RGB, GRAY]), "png"), RGB),
    "png with a text of a wrong checksum": (
        with_chunk(PNG, chunk(b"tEXt", b"key\0value", crc=1)),
        RGB,
    ),
    "png with a text that is too long": (
        with_chunk(PNG, chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(2**23))), b"IEND"),
        RGB,
    ),
    "webp": (encode(RGB, "webp", lossless=True), RGB),
    "bmp": (encode(RGB, "bmp"), RGB),
    "palette bmp": (encode(PALETTE, "bmp"), PALETTE_PIXELS),
    "1-bit bmp": (one_bit("bmp"), repeated(BLACK_OR_WHITE)),
    "tiff": (encode(RGB, "tiff"), RGB),
    "compressed tiff": (encode(RGB, "tiff", compression="tiff_lzw"), RGB),
    "1-bit tiff": (one_bit("tiff"), repeated(BLACK_OR_WHITE)),
    "ppm": (encode(RGB, "ppm"), RGB),
    "pgm": (encode(GRAY, "ppm"), repeated(GRAY)),
    "gif": (encode(PALETTE, "gif"), PALETTE_PIXELS),
    "animated gif": (
        encode(PALETTE, "gif", save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))]),
        PALETTE_PIXELS,
    ),
}
REFUSED = {
    "not an image": (b"<html>", "is not a readable image"),
    "an empty file": (b"", "is not a readable image"),
    "a truncated jpeg": (READ["jpeg"][0][:300], "is not a readable image"),
    "a truncated png": (PNG[:-200], "is not a readable image"),
    "a kind that is not in the list": (
        encode(Image.fromarray(RGB).resize((16, 16)), "ico"),
        "is not a readable image",
    ),
    "16-bit gray png": (encode(GRAY.astype(np.uint16) << 8, "png"), "more than 8 bits"),
    "16-bit gray png with alpha": (deep_png(4, 2), "more than 8 bits"),
    "16-bit color png": (deep_png(2, 3), "more than 8 bits"),
    "16-bit color png with alpha": (deep_png(6, 4), "more than 8 bits"),
    "16-bit tiff": (encode(GRAY.astype(np.uint16) << 8, "tiff"), "more than 8 bits"),
    "16-bit color tiff": (deep_tiff(), "more than 8 bits"),
    "floating-point tiff": (encode(GRAY.astype(np.float32), "tiff"), "more than 8 bits"),
    "16-bit ppm": (b"P6 24 24 65535\n" + bytes(24 * 24 * 6), "more than 8 bits"),
    "10-bit ppm": (b"P6 24 24 1023\n" + bytes(24 * 24 * 6), "more than 8 bits"),
    "16-bit pgm": (b"P5 24 24 65535\n" + bytes(24 * 24 * 2), "more than 8 bits"),
}


def resident(root):
    data = open_data({"dataset": "folder", "data_dir": root, "batch_size": 1, "source": "resident"})
    return data.arrays["train"]["image"][0]


def streaming(root):
    config = {"dataset": "folder", "data_dir": root, "batch_size": 1, "source": "streaming"}
    (xs,) = open_data({**config, "image_size": SIDE}).train_batches(0)
    return xs["image"][0, 0]


def evaluation(root):
    return records.decode_record(ood.open_files(root), 0, 3)[0]


def figure(root):
    ((image,), _) = gallery.read_images([root], SIDE, 1)
    return image


SOURCES = (resident, streaming, evaluation, figure)


def cases(files):
    """(source, bytes, expected) for every source and file."""
    return [
        pytest.param(source, *case, id=f"{source.__name__}-{name}")
        for source in SOURCES
        for name, case in files.items()
    ]


@pytest.fixture
def tree(tmp_path):
    """Folders train/ant and val/ant with an image each. The names do not reveal its format."""

    def make(data):
        for split in ("train", "val"):
            (tmp_path / split / "ant").mkdir(parents=True)
            (tmp_path / split / "ant" / "a.jpg").write_bytes(data)
        return str(tmp_path)

    return make


@pytest.mark.parametrize(("source", "data", "pixels"), cases(READ))
def test_a_file_is_read_alike_by_every_source(source, data, pixels, tree, recwarn):
    np.testing.assert_array_equal(source(tree(data)), pillow(data) if pixels is None else pixels)
    assert [str(w.message) for w in recwarn if "PIL" in w.filename] == []


def by_pillow_alone(monkeypatch):
    """As if no other library were installed."""
    monkeypatch.setattr(image_files, "_optional", lambda package: None)


def outcome(data, channels):
    try:
        return image_files.decode(data, channels, "a.jpg").tobytes()
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("channels", [3, 1])
def test_a_file_is_read_or_refused_alike_with_and_without_simplejpeg(channels, monkeypatch):
    """Damaged files as well: bytes of a JPEG are changed, removed, or cut off."""
    files = [data for data, _ in (READ | REFUSED).values()]
    random = np.random.RandomState(0)
    jpegs = [READ[name][0] for name in READ if "jpeg" in name]
    jpegs += [encode(RGB, "jpeg", quality=95, subsampling=0), encode(RGB, "jpeg", keep_rgb=True)]
    for jpeg in jpegs:
        for _ in range(60):
            place = random.randint(2, len(jpeg))
            damaged = bytes([random.randint(256)]) * random.randint(2)
            files += [jpeg[:place] + damaged + jpeg[place + 1 :]]
        files += [jpeg[:-1], jpeg[:-2], jpeg + b"more", jpeg[: len(jpeg) // 2]]
    with_simplejpeg = [outcome(data, channels) for data in files]
    by_pillow_alone(monkeypatch)
    for data, got in zip(files, with_simplejpeg, strict=True):
        assert got == outcome(data, channels), data


def test_most_jpegs_are_decoded_by_simplejpeg(tfds_dir):
    pytest.importorskip("simplejpeg")
    split = find_set("imagenet_photos", str(tfds_dir), None).splits["train"]
    for i in range(40):
        data = records.encoded(split, i)[0]
        np.testing.assert_array_equal(image_files._decode_jpeg(data, 3), pillow(data))


@pytest.mark.parametrize(("source", "data", "reason"), cases(REFUSED))
def test_a_file_is_refused_alike_by_every_source(source, data, reason, tree):
    with pytest.raises(UserError, match=rf"train/ant/a\.jpg .*{reason}"):
        source(tree(data))


def gone(tree):
    """A file that exists when the dataset is opened, but not when it is read."""
    (pathlib.Path(tree) / "train/ant/a.jpg").unlink()


def without_permission(tree):
    if os.geteuid() == 0:
        pytest.skip("root can read every file")
    (pathlib.Path(tree) / "train/ant/a.jpg").chmod(0)


@pytest.mark.parametrize("damage", [gone, without_permission])
@pytest.mark.parametrize("source", [resident, streaming])
def test_a_file_that_cannot_be_opened_is_named(source, damage, tree, monkeypatch):
    root, opened = tree(PNG), folder.open_folder

    def open_and_damage(*args):
        image_set = opened(*args)
        damage(root)
        return image_set

    monkeypatch.setattr("cutmix_jax.data.open_folder", open_and_damage)
    with pytest.raises(UserError, match=r"train/ant/a\.jpg cannot be read \((No such|Perm)") as e:
        source(root)
    assert "\n" not in str(e.value)


def dangling(path):
    path.symlink_to("nowhere")


def circular(path):
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [dangling, circular, os.mkfifo])
@pytest.mark.parametrize("source", SOURCES)
def test_what_is_only_named_like_an_image_is_named(source, make, tree):
    """Before anything is read, because reading a pipe would never end."""
    root = tree(PNG)
    make(pathlib.Path(root) / "train/ant/b.jpg")
    with pytest.raises(UserError, match=r"train/ant/b\.jpg is named like an image, but is "):
        source(root)


def test_all_readers_find_the_same_files_and_count_the_others(tree, capfd):
    root = pathlib.Path(tree(PNG))
    ant = root / "train/ant"
    for name in ("b.WebP", "c.jpe", "sub/deep/d.png", "sub/a.tiff"):
        (ant / name).parent.mkdir(parents=True, exist_ok=True)
        (ant / name).write_bytes(PNG)
    (ant / "x.jpg").mkdir()
    (ant / "sub/up").symlink_to(root / "train", target_is_directory=True)
    for name in (".DS_Store", "._a.jpg", "._b.jpg", "notes.txt", "README"):
        (ant / name).write_bytes(b"")
    (root / "train/lost.jpg").write_bytes(PNG)
    circular(root / "train/loop")
    found = ["a.jpg", "b.WebP", "c.jpe", "sub/a.tiff", "sub/deep/d.png"]
    others = (
        "1 ending in .txt (train/ant/notes.txt); "
        "3 hidden (train/ant/.DS_Store, train/ant/._a.jpg, ...); "
        "{}1 linking to a folder above (train/ant/sub/up); "
        "1 named like an image but a folder (train/ant/x.jpg); "
        "1 without an ending (train/ant/README).\n"
    )
    split = find_set("folder", str(root), None).splits["train"]
    assert [split.name(i) for i in range(split.count)] == [str(ant / name) for name in found]
    expected = f"{root}: passed over " + others.format(
        "2 in no class folder (train/loop, train/lost.jpg); "
    )
    assert capfd.readouterr().err == expected
    (root / "train/lost.jpg").unlink()
    (root / "train/loop").unlink()
    shutil.rmtree(root / "val")
    assert ood.open_files(root).count == 5
    expected = f"{root}: passed over " + others.format("")
    assert capfd.readouterr().err == expected
    assert gallery.read_images([str(root)], SIDE)[1] == ["a", "b", "c", "a", "d"]
    assert capfd.readouterr().err == expected
    assert find_set("folder", tree_without_others(root), "held_out").splits["train"].count == 5
    assert capfd.readouterr().err == ""


def tree_without_others(root):
    for name in ("x.jpg", "sub/up", ".DS_Store", "._a.jpg", "._b.jpg", "notes.txt", "README"):
        path = root / "train/ant" / name
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    return str(root)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none cannot be listed \(No such file or directory\)"):
        image_files.find(tmp_path / "none", {})


NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


@pytest.mark.parametrize("source", SOURCES)
def test_a_name_that_is_not_utf8_can_be_read(source, tree):
    root = tree(PNG)
    ant = pathlib.Path(root) / "train/ant"
    (ant / "a.jpg").rename(ant / NOT_UTF8)
    shutil.rmtree(pathlib.Path(root) / "val") if source in (evaluation, figure) else None
    np.testing.assert_array_equal(source(root), RGB)


def test_a_name_that_is_not_utf8_is_plotted_and_printed(tmp_path, capfd):
    (tmp_path / NOT_UTF8).write_bytes(PNG)
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"")
    flags = ["--images", str(tmp_path), "--output", str(tmp_path / "sheet.png"), "--side", "16"]
    assert gallery.main([*flags, "--mixes", "mixup"]) == 0
    assert r"1 ending in .txt (caf\xe9.txt)" in capfd.readouterr().err


def resize_then_crop(image, resized, offset, shape):
    """The plain way, with Pillow."""
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture = picture.resize(resized[::-1], Image.Resampling.BILINEAR)
    pixels = np.asarray(picture).reshape(*resized, -1)
    return pixels[offset[0] : offset[0] + shape[0], offset[1] : offset[1] + shape[1]]


SHAPES = [(333, 500), (500, 333), (40, 50), (224, 224), (20, 900), (4, 150), (150, 4), (1, 90)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stored", SHAPES)
def test_a_crop_of_the_resized_image_has_the_bits_of_resizing_first(stored, channels):
    random = np.random.RandomState(0)
    image = random.randint(0, 256, (*stored, channels), np.uint8)
    shape = (56, 60)
    for resize in (60, 64, 97):
        resized = tuple(resize * side // min(stored) for side in stored)
        middle = tuple((side - part) // 2 for side, part in zip(resized, shape, strict=True))
        end = resized[0] - shape[0], resized[1] - shape[1]
        for offset in ((0, 0), middle, end):
            args = image, resized, offset, shape
            got = image_files.resize_and_crop(*args)
            np.testing.assert_array_equal(got, resize_then_crop(*args))


BOXES = [(3, 5, 60, 70), (0, 0, 90, 120), (10, 20, 33, 24), (40, 0, 1, 120), (89, 119, 1, 1)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("box", BOXES)
def test_a_box_is_cut_out_before_it_is_resized(box, channels, monkeypatch):
    """Within one level of Pillow, whatever lies outside the box."""
    image = np.random.RandomState(0).randint(0, 256, (90, 120, channels), np.uint8)
    top, left, height, width = box
    part = image[top : top + height, left : left + width]
    outside = np.full_like(image, 255)
    outside[top : top + height, left : left + width] = part
    for shape in ((56, 60), (224, 224), (33, 24)):
        want = resize_then_crop(part, shape, (0, 0), shape)
        got = image_files.crop_and_resize(image, box, shape)
        assert got.dtype == np.uint8
        assert abs(got.astype(int) - want).max() <= 1
        np.testing.assert_array_equal(got, image_files.crop_and_resize(outside, box, shape))
        with monkeypatch.context() as patch:
            by_pillow_alone(patch)
            np.testing.assert_array_equal(image_files.crop_and_resize(image, box, shape), want)


def test_the_libraries_are_named(monkeypatch):
    versions = {"simplejpeg": "1.9.0", "pillow": "13.0.0"}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(image_files.importlib.metadata, "version", version)
    assert image_files.libraries() == "simplejpeg 1.9.0, pillow 13.0.0"


@contextlib.contextmanager
def at_most_mib(limit):
    """Checks that the block adds at most so much memory, as Linux counts it."""
    if not pathlib.Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux can reset the peak of memory")
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = status_mib("VmRSS")
    yield
    assert status_mib("VmHWM") - before < limit


def status_mib(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 2**10


@pytest.mark.parametrize("stored", [(4, 8000), (20000, 1), (1, 20000)])
def test_elongated_images_take_little_memory(stored):
    """In full, the first would take 0.4 GB, the others 4 GB."""
    image = np.full((*stored, 3), 7, np.uint8)
    resized = tuple(256 * side // min(stored) for side in stored)
    offset = tuple((side - 224) // 2 for side in resized)
    with at_most_mib(100):
        assert (image_files.resize_and_crop(image, resized, offset, (224, 224)) == 7).all()
        assert (ood.fit(image, (224, 224, 3), "crop", (0, 1)) == 7).all()


def test_elongated_images_take_little_memory_when_streamed(tree):
    root = tree(encode(np.zeros((4, 1500, 3), np.uint8), "png"))
    config = {"dataset": "folder", "data_dir": root, "batch_size": 1, "image_size": 224}
    data = open_data({**config, "source": "streaming"})
    with at_most_mib(100):
        (xs,) = data.eval_batches("test")
    assert xs["image"].shape == (1, 1, 224, 224, 3)
