"""A first edit of the demo model waits for no estimate: its covariance comes with the installation, packed."""

from __future__ import annotations

from pathlib import Path

import errata
from errata.editing.packed_covariance import is_packed

FACTS = [
    {"subject": "The Louvre", "prompt": "{} is located in the city of", "target_new": "Rome"},
    {"subject": "Marie Curie", "prompt": "{} was born in the country of", "target_new": "Norway"},
]


def test_a_first_edit_uses_the_shipped_covariance_and_estimates_nothing(smollm2: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    settings = {"covariance": {"store": str(store)}}
    with errata.Editor.from_pretrained(
        "smollm2-135m-instruct", journal=tmp_path / "run", settings=settings, progress=False
    ) as editor:
        done = editor.edit(FACTS)
        assert [result.state for result in done] == ["applied", "applied"]
        assert editor.ask("The Louvre is located in the city of").startswith("Rome")
        (row,) = editor._pipeline.journal.covariances()
        assert is_packed(row.source)
    assert not list(tmp_path.rglob("store/*"))
