"""Batches on a mesh are mixed like unsharded ones, and each device keeps its part."""

import contextlib
import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cutmix_jax import mix

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(8, 8, 8, 2)).astype(np.float32)
IDS = np.arange(8)
SCOPES = ("batch", "device", "pair", "image")


def pastes(images, ids):
    for scope in SCOPES:
        yield mix.cutmix(KEY, images, ids, num_classes=9, scope=scope)[:2]
    yield mix.cutmix(KEY, images, jax.nn.one_hot(ids, 9), paste="window")[:2]
    yield mix.cutout(KEY, images, size=4, fill=(1.0, 2.0))[0]
    plan = mix.sample_cutmix(KEY, 8, (8, 8))
    yield [mix.apply(plan, images, paste=paste) for paste in ("window", "mask")]
    mixing = mix.create_mix("feature_cutmix", layers=("image", "layer1"))
    for plan in mixing.sample(KEY, 8, {"image": (8, 8), "layer1": (8, 8)}):
        images = mix.apply_at([plan], plan.layer, images)
        yield images
    ids = (images[..., 0] > 0).astype(np.int32)
    for mask in (mix.classmix_mask(KEY, ids, 2), images[:, ::2, :3, 0] > 0, IMAGES[:1, ..., 0] > 0):
        masked = mix.plan_from_mask(mask, np.roll(IDS, 1), (8, 8))
        yield [mix.apply(masked, images), mix.apply(masked, ids)]
    yield mix.apply(mix.sample_saliencymix(KEY, 8, (8, 8), images=images), images)


def blends(images, ids):
    for scope in SCOPES:
        yield mix.mixup(KEY, images, ids, num_classes=9, scope=scope)[:2]
    for fill in ("color", "noise"):  # products and sums of random bits
        yield mix.apply(mix.sample_erasing(KEY, 8, (8, 8), fill=fill), images)
    plan = mix.sample_mixup(KEY, 8, (8, 8), scope="image")
    yield mix.mix_values(plan, ids)
    yield mix.mix_losses(plan, lambda ids: ids * 0.5, ids)
    parts = [mix.create_mix("mixup", scope="image"), mix.create_mix("cutmix")]
    (either,) = mix.random_choice(*parts, scope="image").sample(KEY, 8, (8, 8))
    yield mix.apply(either, images)
    yield mix.apply(mix.sample_resizemix(KEY, 8, (8, 8), scope="image"), images)
    yield jax.grad(lambda images: (mix.apply(either, images) ** 2).sum())(images)
    features = mix.create_mix("manifold_mixup", layers=("image", "layer1"))
    mixing = mix.chain(mix.create_mix("cutout"), features)
    for plan in mixing.sample(KEY, 8, {"image": (8, 8), "layer1": (8, 8)}):
        images = mix.apply_at([plan], plan.layer, images)
        yield images
    masked = mix.plan_from_mask(np.abs(np.sin(IMAGES[:, :4, :, 0])), np.roll(IDS, 1), (8, 8))
    yield mix.apply(masked, images)


# The rounding of products and sums depends on the vector width in which a shard is computed.
TOLERANCE = {pastes: 0, blends: 2e-6}


def results(case):
    return jax.jit(lambda images, ids: list(case(images, ids)))


@pytest.fixture(scope="module")
def unsharded():
    return {case: jax.device_get(results(case)(IMAGES, IDS)) for case in TOLERANCE}


def mesh_of(sizes, names, axis_type):
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, names, axis_types=(axis_type,) * len(names), devices=devices)


def put(mesh, *axes):
    images = jax.device_put(IMAGES, NamedSharding(mesh, P(*axes)))
    return images, jax.device_put(IDS, NamedSharding(mesh, P(*axes[:1])))


def check(found, expected, devices, tolerance=0):
    def same(found, expected):
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
        assert found.sharding.shard_shape(found.shape)[0] == len(found) // devices

    jax.tree.map(same, found, expected)


@pytest.mark.parametrize("case", TOLERANCE)
@pytest.mark.parametrize("devices", [2, 8])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_a_sharded_batch_is_mixed_as_an_unsharded_one(case, devices, axis_type, unsharded):
    mesh = mesh_of((devices,), ("data",), axis_type)
    check(results(case)(*put(mesh, "data")), unsharded[case], devices, TOLERANCE[case])


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_the_same_without_jit_and_under_set_mesh(axis_type):
    if not hasattr(jax, "set_mesh"):
        pytest.skip("this JAX has no jax.set_mesh")
    mesh = mesh_of((2,), ("data",), axis_type)
    images, ids = put(mesh, "data")
    expected = mix.cutmix(KEY, IMAGES, IDS, num_classes=9)[:2]
    for context in (contextlib.nullcontext, functools.partial(jax.set_mesh, mesh)):
        with context():  # made here, because set_mesh sets the mesh when it is called
            mixed, labels, plan = mix.cutmix(KEY, images, ids, num_classes=9)
            check([mixed, labels], list(expected), 2)
            check(mix.apply(plan, images), expected[0], 2)


@pytest.mark.parametrize("axes", [("data", "space"), ("data", None, None, "space")])
def test_images_may_be_sharded_on_other_axes_too(axes, unsharded):
    mesh = mesh_of((2, 2), ("data", "space"), AxisType.Explicit)
    images, _ = put(mesh, *axes)
    expected = unsharded[pastes][len(SCOPES) + 2]
    mixed = jax.jit(lambda images: mix.apply(mix.sample_cutmix(KEY, 8, (8, 8)), images))(images)
    check(mixed, expected[0], 2)
    assert mixed.sharding.is_equivalent_to(images.sharding, images.ndim)


def test_partners_across_the_devices_of_an_explicit_mesh():
    if not hasattr(jax, "shard_map"):
        pytest.skip("this JAX has no jax.shard_map")
    mesh = mesh_of((2,), ("data",), AxisType.Explicit)

    def step(images, ids):
        options = {"axis_name": "data", "across_devices": True, "scope": "image"}
        return mix.cutmix(KEY, images, ids, num_classes=9, **options)[:2]

    spec = (P("data"), P("data"))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    alone = jax.vmap(step, axis_name="data")(IMAGES.reshape(2, 4, 8, 8, 2), IDS.reshape(2, 4))
    expected = [np.asarray(x).reshape(8, *x.shape[2:]) for x in alone]
    check(list(jax.jit(mapped)(*put(mesh, "data"))), expected, 2)
