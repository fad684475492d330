"""Checkpoints: which ones are kept, and what is not saved."""

import shutil

import jax
import numpy as np
import pytest

from cutmix_jax import UserError
from cutmix_jax.checkpoint import Checkpoints, digest
from cutmix_jax.parallel import create_mapping


@pytest.fixture
def mapping():
    return create_mapping("pmap", 1)


def weights(mapping, value):
    """A state of one array, on the device."""
    return mapping.replicate({"weight": np.full(1000, value, np.float32), "step": np.int32(value)})


def test_the_latest_two_and_the_best_are_kept(tmp_path, mapping):
    errors = {1: 0.5, 2: 0.3, 3: None, 4: 0.3, 5: 0.4, 6: None, 7: 0.9, 8: 0.6}
    with Checkpoints(tmp_path) as checkpoints:
        for step, error in errors.items():
            checkpoints.save(step, weights(mapping, step), {"note": step}, error)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.manager.all_steps() == [4, 7, 8]  # the later of two equally good ones
        for which, step in (("latest", 8), ("best", 4)):
            state, meta, passed_over = checkpoints.restore(weights(mapping, 0), which)
            assert (int(state["step"]), meta["note"], passed_over) == (step, step, [])
        checkpoints.save(9, weights(mapping, 9), {}, 0.7)  # still known after reopening
        checkpoints.wait()
        assert checkpoints.manager.all_steps() == [4, 8, 9]


def test_what_is_restored_is_what_was_saved_on_any_number_of_devices(tmp_path, mapping):
    eight = create_mapping("shard_map")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, weights(eight, 1), {"plain": [1, 2.5, None, "x"]})
    with Checkpoints(tmp_path) as checkpoints:
        state, meta, _ = checkpoints.restore(weights(mapping, 0))
    assert digest(jax.device_get(state)) == digest(jax.device_get(weights(mapping, 1)))
    assert meta["plain"] == [1, 2.5, None, "x"]


def test_the_digest_sees_values_names_dtypes_and_shapes():
    tree = {"a": np.zeros((2, 3), np.float32)}
    others = [
        {"a": np.full((2, 3), -0.0, np.float32)},
        {"b": tree["a"]},
        {"a": tree["a"].astype(np.int32)},
        {"a": tree["a"].reshape(3, 2)},
    ]
    assert digest(tree) == digest({"a": np.zeros((2, 3), np.float32)})
    assert len({digest(other) for other in [tree, *others]}) == 5


def test_a_full_disk_is_an_error_that_leaves_earlier_checkpoints(tmp_path, mapping, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, weights(mapping, 1), {})
        checkpoints.wait()
        full = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
        with pytest.raises(UserError, match="Earlier checkpoints are intact; free some space"):
            checkpoints.save(2, weights(mapping, 2), {})
        assert checkpoints.manager.all_steps() == [1]
        state, _, _ = checkpoints.restore(weights(mapping, 0))
    assert int(state["step"]) == 1


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, mapping):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="not finite at step 3"):
            checkpoints.save(3, mapping.replicate({"weight": np.array([1, np.inf])}), {})
        assert not checkpoints.manager.all_steps()
