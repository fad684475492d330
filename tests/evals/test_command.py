"""`--mode evaluate --evals ...` as the user sees it."""

import csv
import json
import re

import pytest
from PIL import Image

from cutmix_jax import UserError, evals, run
from tests.commands import SMALL, run_main, small_config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "digits"
    done = run_main(f"--workdir={folder}", *SMALL)
    assert done.returncode == 0, done.stderr
    return folder


def evaluate(workdir, *arguments):
    return run_main(f"--workdir={workdir}", "--mode=evaluate", *arguments)


def test_all_evaluations_and_the_second_time_without_computing(workdir):
    quick = ["--config.evals.fgsm.eps=(8.0,)", "--config.evals.fgsm.pgd_steps=2"]
    done = evaluate(workdir, "--evals=all", *quick)
    assert done.returncode == 0, done.stderr
    assert "localization is left out: localization needs the true boxes" in done.stderr
    results = json.loads(done.stdout)
    assert results.keys() == evals.EVALS.keys() - {"localization", "detection", "captions"}
    for name, values in results.items():
        place = workdir / "evals"
        assert json.loads((place / f"{name}.json").read_text()) == values
        assert values["checkpoint"] == 10
        assert values["examples"] == 297
        assert values["seconds"] > 0
        options = {key for key in values if key.startswith("options.")}
        assert options == {f"options.{key}" for key in small_config().evals[name]}
        assert not any(isinstance(value, dict | list) for value in values.values())
        with (place / f"{name}.csv").open() as file:
            assert list(csv.DictReader(file))
        pictures = list(place.glob(f"{name}*.png"))
        assert pictures
        for picture in pictures:
            with Image.open(picture) as image:
                assert min(image.size) > 200

    assert (results["fgsm"]["options.eps"], results["fgsm"]["options.pgd_steps"]) == ("(8.0,)", 2)
    # The network was made for the digits.
    assert results["ood"]["options.sets"] == "('uniform', 'gaussian', 'digits')"
    assert results["ood"]["sets"] == "('uniform', 'gaussian')"

    again = evaluate(workdir, "--evals=all", *quick)
    assert json.loads(again.stdout) == results
    assert again.stderr.count("as measured before") == len(results)
    # Options of one evaluation do not affect the others.
    other = evaluate(workdir, "--evals=occlusion,ood", *quick, "--config.evals.occlusion.steps=2")
    assert "ood: as measured before" in other.stderr
    assert "occlusion: 297 images" in other.stderr
    assert json.loads(other.stdout)["occlusion"].keys() == results["occlusion"].keys()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("fgms", r"no evaluation 'fgms' \(the nearest is 'fgsm'\)"),
        (",", r"--evals is empty.*or all"),
        ("classification,localization", r"Localization needs the true boxes.*digits has none"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_measured(workdir, names, expected):
    before = sorted((workdir / "evals").iterdir()) if (workdir / "evals").exists() else None
    with pytest.raises(UserError, match=expected):
        run.evaluate(small_config(), workdir, evals=names)
    if before is not None:
        assert sorted((workdir / "evals").iterdir()) == before


def test_evaluations_need_a_checkpoint_and_the_mode(tmp_path):
    with pytest.raises(UserError, match=r"has no checkpoint\. Train first"):
        run.evaluate(None, tmp_path, evals="all")
    done = run_main(f"--workdir={tmp_path}", "--evals=all")
    assert done.returncode == 1
    assert re.fullmatch(r"error: --evals needs --mode evaluate.*\n", done.stderr)


def test_names_are_checked_in_order():
    assert evals.check_names("ood, fgsm,ood") == ["ood", "fgsm"]
    assert evals.check_names("all") == list(evals.EVALS)
    with pytest.raises(UserError, match="nearest is 'occlusion'"):
        evals.check_names("oclusion")
