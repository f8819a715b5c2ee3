"""The report of a run: one self-contained HTML page, without anything from the network."""

from errata.orchestrator.report.render import render_report

__all__ = ["render_report"]
