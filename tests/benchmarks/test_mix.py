"""Mixes next to other libraries: a row names those that are missing or refuse a batch."""

import argparse

import numpy as np
import pytest

from benchmarks import mix

OPTIONS = argparse.Namespace(repeats=2, rounds=1)


def rows(libraries, dtype="float32"):
    batch = np.zeros((4, 8, 8, 3), dtype), np.arange(4), 4
    return list(mix.batch_rows("4 x 8 px", batch, libraries, OPTIONS))


@pytest.mark.parametrize("name", mix.LIBRARIES)
def test_a_library_that_is_not_installed_is_named_once(name, monkeypatch):
    for module in ("torch", "torchvision", "timm", "kornia", "keras"):
        monkeypatch.setitem(mix.sys.modules, module, None)
    libraries = {name: mix.LIBRARIES[name]}
    (row,) = [row for row in rows_of(libraries) if row.peer == name]
    assert "not installed" in row.note
    assert "requirements-peers.txt" in row.note
    assert libraries == {}  # later batches do not report it again


def rows_of(libraries):
    """The rows, with a plain function in place of ours, so that nothing compiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mix, "ours", plain)
        return rows(libraries)


def plain(images, labels, classes):
    yield mix.COPY, images.copy
    yield "CutMix", images.copy
    yield "Mixup", images.copy


def test_a_mix_that_fails_is_reported_next_to_one_that_runs():
    def peer(images, labels, classes):
        yield "CutMix", images.copy
        yield "Mixup", lambda: 1 / 0

    found = {row.what: row for row in rows_of({"peer": peer}) if row.peer == "peer"}
    assert len(found["CutMix, 4 x 8 px"].ratios) == 2
    assert found["Mixup, 4 x 8 px"].ratios == []
    assert found["Mixup, 4 x 8 px"].note == "ZeroDivisionError: division by zero"


def test_a_library_that_refuses_the_batch_stays_for_the_next():
    def peer(images, labels, classes):
        raise TypeError("is for floats")
        yield

    libraries = {"peer": peer}
    (row,) = [row for row in rows_of(libraries) if row.peer == "peer"]
    assert (row.what, row.note) == ("CutMix and Mixup, 4 x 8 px", "TypeError: is for floats")
    assert libraries == {"peer": peer}


def test_ours_are_measured_next_to_a_copy():
    found = {row.what: row for row in rows({}, "uint8")}
    assert set(found) == {
        f"{kind}, 4 x 8 px"
        for kind in (
            "CutMix",
            "pixels alone, mask",
            "pixels alone, window",
            "CutMix per image",
            "Mixup",
        )
    }
    assert all(row.peer == "copy, JAX" and len(row.ratios) == 2 for row in found.values())


def test_compiling_is_measured_once_per_repeat():
    row = mix.compile_row(repeats=2)
    assert row.unit == "s"
    assert len(row.ours) == 2
    assert min(row.ours) > 0


def test_a_mix_of_another_name_returns_images_and_labels():
    images, labels = np.ones((4, 8, 8, 3), np.float32), np.arange(4)
    mixed, rows = mix.named("ResizeMix", 4)(mix.jax.random.key(0), images, labels)
    np.testing.assert_allclose(mixed, images, rtol=1e-6)
    np.testing.assert_allclose(rows.sum(0), 1)
