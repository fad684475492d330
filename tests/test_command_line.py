"""Configs are found by the names that the command line gives."""

from cutmix_jax.command_line import read_config


def test_the_projects_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = read_config("configs/cifar10.py:resnet20,cutmix")
    assert (config.model, config.mix.name) == ("resnet20", "cutmix")


def test_a_file_of_the_users_own_goes_before_the_projects(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").write_text(
        "from cutmix_jax.config import base_config\n\n\n"
        "def get_config():\n    config = base_config()\n    config.seed = 7\n    return config\n"
    )
    assert read_config("configs/digits.py").seed == 7
