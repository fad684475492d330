"""The config: every key is in one place, and its parameters reach the mix."""

import re

import pytest

from cutmix_jax import UserError
from cutmix_jax.config import (
    SCHEMA,
    base_config,
    check_config,
    differences,
    flatten,
    from_plain,
    to_plain,
)
from cutmix_jax.methods import create_mix
from cutmix_jax.mix import named


def test_the_schema_is_the_config():
    config = base_config()
    assert flatten(config.to_dict()) == {key: entry.default for key, entry in SCHEMA.items()}
    check_config(config)


@pytest.mark.parametrize("key", SCHEMA)
def test_a_key_has_a_type_and_a_line(key):
    entry = SCHEMA[key]
    assert entry.default is None or type(entry.default) is entry.type
    assert re.fullmatch(r"[^\n]{3,80}\.", entry.meaning)


def test_a_key_that_does_not_exist_is_refused():
    config = base_config()
    config.weigth_decay = 0.1
    with pytest.raises(UserError, match=r"no config key 'weigth_decay'.*'weight_decay'"):
        check_config(config)


def test_a_config_of_another_version_is_refused_by_its_key():
    plain = to_plain(base_config())
    del plain["ema"]
    assert from_plain(plain).ema == 0.0
    plain["mix"]["cutout_size"] = 16.0
    with pytest.raises(UserError, match=r"has the key 'mix\.cutout_size', which this version"):
        from_plain(plain)


@pytest.mark.parametrize("name", sorted(named.MIXES))
def test_every_parameter_of_every_mix_is_a_key(name):
    assert set(named.parameters_of(name)) <= {key.removeprefix("mix.") for key in SCHEMA}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "none"}, "no mixing"),
        ({"name": "cutmix", "alpha": 0.2, "prob": 0.5}, r"Beta\(0\.2, 0\.2\).*probability 0\.5"),
        ({"name": "fixed_size_cutmix", "size": 16.0}, r"size 16"),
        ({"name": "cutout+mixup_alpha0.5"}, r"Cutout.*then Mixup.*Beta\(0\.5"),
        ({"name": "cutmix_or_mixup", "switch_prob": 0.25}, r"or, with probability 0\.25, Mixup"),
        ({"name": "feature_cutmix", "layers": (0, 4)}, r"at one of image, layer3"),
        ({"name": "scheduled_cutmix"}, r"probability 0 to 1"),
    ],
)
def test_a_mix_is_made_from_its_keys(values, words):
    config = base_config()
    config.mix.update(values)
    assert re.search(words, create_mix(config.mix).describe())


def test_a_parameter_that_the_mix_does_not_have_is_refused():
    config = base_config()
    config.mix.update({"name": "mixup", "box": "paper"})
    with pytest.raises(UserError, match=r"config\.mix: .*mixup.*box"):
        create_mix(config.mix)


@pytest.mark.parametrize(
    ("name", "prob"), [("cutmix_or_mixup", 1.5), ("cutmix_or_mixup_or_cutout", 0.5)]
)
def test_a_probability_of_the_second_mix_is_one_of_two(name, prob):
    config = base_config()
    config.mix.update({"name": name, "switch_prob": prob})
    with pytest.raises(UserError, match=rf"switch_prob is {prob}, but a number from 0 to 1"):
        create_mix(config.mix)


def test_differences_name_what_matters():
    ours, theirs = base_config(), base_config()
    theirs.data_dir, theirs.mapping = "/elsewhere", "shard_map"
    assert differences(to_plain(ours), to_plain(theirs)) == []
    theirs.augment.pad = 4
    assert differences(to_plain(ours), to_plain(theirs)) == [("augment.pad", 0, 4)]


def test_a_checkpoint_that_is_older_than_a_key_has_its_default():
    theirs = to_plain(base_config())
    del theirs["eval_every"], theirs["augment"]["pad"]
    assert differences(to_plain(base_config()), theirs) == []
    ours = base_config()
    ours.eval_every = 2
    assert differences(to_plain(ours), theirs) == [("eval_every", 2, 1)]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("classification.bins", (0,)),
        ("cam.images", (0, -1)),
        ("cam.threshold", (0.0, 1.0, float("nan"))),
        ("localization.threshold", (0.0, 1.0)),
        ("localization.sweep_step", (0.0, float("nan"))),
        ("localization.max_box_step", (1.0,)),
        ("fgsm.eps", ((-1.0,), (8.0, 256.0), (float("nan"),), ("a",))),
        ("fgsm.pgd_eps", ((300.0,),)),
        ("fgsm.pgd_steps", (0,)),
        ("fgsm.pgd_step_size", (0.0, float("inf"))),
        ("fgsm.seed", (-1,)),
        ("occlusion.steps", (0, -4)),
        ("occlusion.step", (0, -4)),
        ("between.pairs", (0, -5)),
        ("between.lam_steps", (0,)),
        ("between.steps", (0,)),
        ("between.step", (0,)),
        ("between.seed", (-1,)),
        ("ood.sets", ((), ("uniform", "uniform"), (3,))),
        ("ood.limit", (0, -5)),
        ("ood.seed", (-1,)),
    ],
)
def test_options_that_no_evaluation_can_use_are_refused_by_name(key, values):
    for value in values:
        config = base_config()
        config.update_from_flattened_dict({f"evals.{key}": value})
        with pytest.raises(UserError, match=rf"^config\.evals\.{key} is .* was expected\.$"):
            check_config(config)


def test_an_attack_may_be_left_out():
    config = base_config()
    config.evals.fgsm.eps = config.evals.fgsm.pgd_eps = ()
    check_config(config)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"ema_every": 0}, "ema_every is 0"),
        ({"repeats": 0}, "repeats is 0"),
        ({"warmup_start": 1.5}, r"warmup_start is 1\.5"),
        ({"warmup_start": 0.5}, r"warmup_start is 0\.5, but config\.warmup_epochs is 0"),
        ({"ema_every": 2}, r"ema_every is 2, but config\.ema is 0"),
        ({"repeats": 200}, r"repeats is 200, but at most config\.batch_size=64"),
        ({"min_learning_rate": 0.2, "schedule": "cosine"}, "is 0.2, but at most .*=0.1 was"),
        ({"min_learning_rate": 0.01}, "0.01, but only config.schedule='cosine' ends there"),
        ({"bce_threshold": 0.2}, "bce_threshold is 0.2, but config.loss is 'cross_entropy'"),
        ({"weight_decay_on": "convs"}, "weight_decay_on is 'convs', but one of 'all'"),
    ],
)
def test_settings_that_no_run_can_use_are_refused(values, match):
    config = base_config()
    config.update(values)
    with pytest.raises(UserError, match=match):
        check_config(config)
