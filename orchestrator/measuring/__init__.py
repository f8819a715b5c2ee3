"""Evaluations of frozen versions, the timeline, and what is preserved."""
