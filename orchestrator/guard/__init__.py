"""The guard: is the model still itself? See `orchestrator.guard.guard`; what it compares is in `rules`."""
