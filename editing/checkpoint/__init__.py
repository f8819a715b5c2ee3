"""Checkpoints on disk: fetched, staged, loaded, sliced."""
