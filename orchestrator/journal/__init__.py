"""The record of requests and their fate, the single source of truth, and the files that it names."""

from errata.orchestrator.journal.journal import Journal

__all__ = ["Journal"]
