"""Versions of a run: listed, shown, rebuilt, verified, exported."""
