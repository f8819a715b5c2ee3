"""The record of requests and their fate, the single source of truth, and the files that it names."""

from errata.orchestrator.journal.journal import JOURNAL_FILE, Journal

__all__ = ["JOURNAL_FILE", "Journal"]
