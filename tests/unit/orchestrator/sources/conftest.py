from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from errata.orchestrator.journal import Journal
from tests.helpers.streams import new_journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with new_journal(tmp_path / "journal.sqlite") as journal:
        yield journal
