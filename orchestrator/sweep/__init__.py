"""A grid of runs: what it holds (``config``), what is left to do (``plan``), and doing it (``execute``)."""
