"""An earlier result is reused only if everything that it depends on is the same."""

import dataclasses
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from cutmix_jax import evals
from cutmix_jax.parallel import create_mapping
from cutmix_jax.tasks import create_task
from cutmix_jax.train import create_state
from tests.commands import small_config

COLOR = {"normalize.mean": (0.5,) * 3, "normalize.std": (0.25,) * 3, "image_size": 8}
SOURCES = ("resident", "streaming")


def write_images(root, seed):
    """train/CLASS and val/CLASS: 8 and 6 images of 8x8, with file names of equal length."""
    random = np.random.RandomState(seed)
    for split, count in (("train", 8), ("val", 6)):
        for i in range(count):
            folder = root / split / ("ant", "bee")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = random.randint(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.bmp")
    return root


def write_boxes(folder, bottom):
    folder.mkdir(exist_ok=True)
    for i in range(8):
        (folder / f"{i}.xml").write_text(
            "<annotation><size><width>8</width><height>8</height></size><object><bndbox>"
            f"<xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>{bottom}</ymax>"
            "</bndbox></object></annotation>"
        )
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return [write_images(tmp_path_factory.mktemp(f"images{i}") / "set", i) for i in range(2)]


@pytest.fixture(scope="module")
def weights(images):
    return create_state(create(images[0])).evaluated()


def create(folder, **overrides):
    values = {"dataset": "folder", "data_dir": str(folder), "batch_size": 4, "train_examples": 4}
    return create_task(small_config(**(values | COLOR | overrides)), create_mapping("pmap", 1))


@pytest.fixture
def measure(images, weights, tmp_path):
    """measure(names, folder, **overrides) -> (values, number of reused results)."""

    def measured(names, folder=images[0], **overrides):
        task = create(folder, **overrides)
        subject = evals.create_subject(task, task.mapping.replicate(weights), quiet=True)
        stream = io.StringIO()
        found = evals.run_evals(subject, names, tmp_path, 0, stream=stream)
        return found, stream.getvalue().count("as measured before")

    return measured


@pytest.fixture
def quick(monkeypatch):
    """Evaluations that look up what they need, and measure almost nothing."""

    def run(subject, options, *inputs):
        return evals.Report({"number": 0.0}, [{"number": 0.0}])

    for name, evaluation in evals.EVALS.items():
        monkeypatch.setitem(evals.EVALS, name, dataclasses.replace(evaluation, run=run))


def test_the_loss_is_that_of_these_images(measure, images):
    loss = {}
    for folder, known in ((images[0], 0), (images[0], 1), (images[1], 0), (images[0], 0)):
        found, again = measure(["classification"], folder)
        assert again == known
        assert (
            loss.setdefault(folder, found["classification"]["loss"])
            == (found["classification"]["loss"])
        )
    assert loss[images[0]] != loss[images[1]]


@pytest.mark.usefixtures("quick")
class TestWhatIsMeasuredAgain:
    @pytest.mark.parametrize("source", SOURCES)
    def test_other_images_of_the_same_names(self, measure, images, source, tmp_path):
        names = sorted(evals.EVALS.keys() - {"localization", "detection", "captions"})
        assert measure(names, source=source)[1] == 0
        assert measure(names, source=source)[1] == len(names)
        # In any folder.
        copy = shutil.copytree(images[0], tmp_path / "copy")
        assert measure(names, copy, source=source)[1] == len(names)
        assert measure(names, images[1], source=source)[1] == 0

    @pytest.mark.parametrize("source", SOURCES)
    def test_other_labels_and_names_of_classes(self, measure, images, tmp_path, source):
        measure(["classification"], source=source)
        labels = shutil.copytree(images[0], tmp_path / "labels")
        # The images keep their order: the last ant becomes the first bee.
        (labels / "val" / "ant" / "4.bmp").rename(labels / "val" / "bee" / "0.bmp")
        names = shutil.copytree(images[0], tmp_path / "names")
        for split in ("train", "val"):
            (names / split / "bee").rename(names / split / "wasp")
        for folder in (labels, names):
            assert measure(["classification"], folder, source=source)[1] == 0

    @pytest.mark.parametrize("source", SOURCES)
    def test_other_boxes(self, measure, tmp_path, source):
        names = ["localization", "cam", "occlusion"]
        options = {"source": source, "boxes_dir": str(write_boxes(tmp_path / "boxes", bottom=6))}
        assert measure(names, **options)[1] == 0
        assert measure(names, **options)[1] == 3
        write_boxes(tmp_path / "boxes", bottom=2)
        assert measure(names, **options)[1] == 1  # which uses no boxes

    def test_other_images_out_of_the_distribution(self, measure, images, tmp_path):
        folder = shutil.copytree(images[1] / "train", tmp_path / "others")
        options = {"evals.ood.sets": (f"folder:{folder}", "uniform", "digits")}
        assert measure(["ood"], **options)[1] == 0
        assert measure(["ood"], **options)[1] == 1
        (folder / "ant" / "0.bmp").write_bytes((folder / "ant" / "2.bmp").read_bytes())
        assert measure(["ood"], **options)[1] == 0

    def test_another_version_of_the_evaluation(self, measure, monkeypatch):
        measure(["classification"])
        newer = dataclasses.replace(evals.EVALS["classification"], version=99)
        monkeypatch.setitem(evals.EVALS, "classification", newer)
        assert measure(["classification"])[1] == 0
