"""``python -m errata.orchestrator.cli``, for a process that starts another."""

from errata.orchestrator.cli.main import main

main()
