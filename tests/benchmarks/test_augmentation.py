"""Operations next to decoding: the rows."""

import argparse

from benchmarks import augmentation


def test_each_policy_is_measured_next_to_decoding(monkeypatch):
    monkeypatch.setattr(augmentation, "BATCH", 2)
    monkeypatch.setattr(augmentation, "SIDE", 24)
    few = {"trivial_augment": augmentation.POLICIES["trivial_augment"]}
    monkeypatch.setattr(augmentation, "POLICIES", few)
    options = argparse.Namespace(repeats=2, rounds=1, single=False)
    decode, policy, *erasing = augmentation.measure(options)
    assert (decode.what, decode.unit, len(decode.ours)) == (augmentation.DECODE, "ms per image", 2)
    assert (policy.what, policy.goal, policy.peer) == ("trivial_augment", ">= 1", "decoding")
    assert [row.what for row in erasing] == [
        "random erasing, constant",
        "random erasing, color",
        "random erasing, noise",
    ]
    assert all(len(row.ratios) == 2 for row in (policy, *erasing))
