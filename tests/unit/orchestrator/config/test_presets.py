"""Finding shipped files by name, from any working directory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import errata
from errata.editing.errors import UserError
from errata.orchestrator.config.presets import configs_root, find_config, find_data


def test_a_shipped_configuration_is_found_by_name_and_by_its_path_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = configs_root() / "quickstart.yaml"
    assert find_config("quickstart") == shipped
    assert find_config("quickstart.yaml") == shipped
    assert find_config("configs/quickstart.yaml") == shipped  # as the pages write it, without a checkout


def test_a_file_comes_before_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("mine")
    assert find_config("quickstart").resolve() == tmp_path / "quickstart"


def test_an_unknown_name_lists_the_shipped_ones():
    with pytest.raises(UserError, match=r"'quikstart' is not there; give a file or one of: .*quickstart"):
        find_config("quikstart")


def test_a_directory_is_no_configuration(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        find_config(str(tmp_path))


def test_data_is_looked_for_as_given_then_beside_the_configuration_then_among_the_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "configs/streams/quickstart.jsonl"
    assert Path(find_data(name)) == configs_root() / "streams" / "quickstart.jsonl"
    beside = tmp_path / "elsewhere"
    (beside / "configs" / "streams").mkdir(parents=True)
    (beside / name).write_text("{}")
    assert find_data(name, beside) == str(beside / name)
    (tmp_path / "configs" / "streams").mkdir(parents=True)
    (tmp_path / name).write_text("{}")
    assert find_data(name, beside) == name


def test_what_is_nowhere_and_what_is_on_the_hub_stays_as_given(tmp_path):
    assert find_data("no/such/file.jsonl", tmp_path) == "no/such/file.jsonl"
    assert find_data("hub:some/data:test", tmp_path) == "hub:some/data:test"


def test_an_installed_package_carries_the_configurations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "errata"
    shutil.copytree(configs_root(), package / "_configs")  # as the wheel holds it
    monkeypatch.setattr(errata, "__file__", str(package / "__init__.py"))
    assert configs_root() == package / "_configs"
    assert find_config("quickstart") == package / "_configs" / "quickstart.yaml"
    assert Path(find_data("configs/text/heldout.txt")) == package / "_configs" / "text" / "heldout.txt"
