"""Estimates of what must be kept: stored, refreshed while edits go on, compared."""
