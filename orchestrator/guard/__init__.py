"""The guard: is the model still itself? See `errata.orchestrator.guard.guard`; what it compares is in `rules`."""
