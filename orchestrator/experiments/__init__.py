"""Grids of runs and what comes of them.

A grid is declared (``config``), what is left of it is found (``plan``) and done (``execute``). Finished runs are read
(``collect``), checked (``check``) and put side by side (``tables``, ``timeline``, ``write``).
"""
