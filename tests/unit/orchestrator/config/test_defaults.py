"""What settings are where a configuration does not say them."""

from __future__ import annotations

import pytest

from errata.editing.editors import REGISTRY
from errata.orchestrator.config.defaults import defaults_of
from errata.orchestrator.config.loading import check_config


@pytest.mark.parametrize("editor", ["alphaedit", "memit", "rome", "emmet", "pmet"])
def test_they_are_those_of_a_configuration_that_says_no_more_than_it_must(editor: str) -> None:
    data = {
        "model": {"name": "nowhere"},
        "editor": {"type": editor, "layers": [1] if editor == "rome" else [1, 2]},
        "stream": {"path": "facts.jsonl"},
        "covariance": {"tokens": 100},
    }
    whole = check_config(data).model_dump(mode="json")
    defaults = defaults_of(editor)
    for section in ("batching", "refresh", "memory", "router", "evaluation", "verify", "guard", "service"):
        assert defaults[section] == whole[section], section
    for section in ("editor", "covariance", "model"):
        for key, value in defaults[section].items():
            if key not in data[section]:
                assert value == whole[section][key], (section, key)


def test_every_editor_has_them_and_an_unknown_one_none() -> None:
    for editor in REGISTRY:
        assert "layers" not in defaults_of(editor)["editor"] or defaults_of(editor)["editor"]["layers"] is not None
    assert "editor" not in defaults_of("of-another-release") and "editor" not in defaults_of(None)
