"""What people type: ``errata run | serve | log | ...``."""

from errata.orchestrator.cli.main import app, main

__all__ = ["app", "main"]
