"""Versions to where they are used: live servers (`rollout`), a model registry (`registry`), by policy (`policy`)."""
