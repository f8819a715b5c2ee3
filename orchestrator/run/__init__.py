"""A run: opening it, batches, reverts, the loop, its end."""
