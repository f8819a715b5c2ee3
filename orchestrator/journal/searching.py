"""Which requests a page of them shows, as a condition of SQL."""

from __future__ import annotations

from typing import Final

from errata.orchestrator.journal.rows import Outcome, RequestState

_SEARCHED: Final = ("subject", "prompt", "target_new", "statement")
_TEXT: Final = " || char(10) || ".join(f"ifnull(json_extract(payload, '$.{key}'), '')" for key in _SEARCHED)
_HAS_WORD: Final = f"(id || char(10) || {_TEXT}) LIKE ? ESCAPE '\\'"


def where(
    *,
    before: int | None = None,
    state: RequestState | None = None,
    outcome: Outcome | None = None,
    relation: str | None = None,
    words: str | None = None,
) -> tuple[str, tuple[object, ...]]:
    """A ``WHERE`` clause over requests, perhaps empty, and its values.

    Args:
        before: only those accepted before this number.
        state, outcome, relation: only those that have it.
        words: only those in whose id, subject, prompt, target or statement each of these words occurs; letters of A to
            Z in either case.
    """
    pairs: list[tuple[str, object]] = [("seq < ?", before), ("state = ?", state), ("outcome = ?", outcome)]
    pairs.append(("json_extract(payload, '$.relation') = ?", relation))
    given = [(text, value) for text, value in pairs if value is not None]
    for word in (words or "").split():
        plain = word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        given.append((_HAS_WORD, f"%{plain}%"))
    clause = f"WHERE {' AND '.join(text for text, _ in given)}" if given else ""
    return clause, tuple(value for _, value in given)
