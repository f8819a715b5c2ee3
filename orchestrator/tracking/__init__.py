"""MLflow: one thread, one spool, no point lost."""
