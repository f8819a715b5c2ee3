"""The control plane. It decides *when*; the rooms below know *how*.

* ``cli`` - the command line; ``config`` - the root configuration, composed of the components' own settings.
* ``run`` - the loop: stream -> journal -> batch -> editor -> commit -> memory -> evaluation.
* ``journal`` / ``artifacts`` / ``versions`` - what happened, and the files it names; the single source of truth.
* ``streams`` / ``batcher`` / ``refresh`` - where updates come from and when they are written.
* ``measure`` - evaluations of frozen versions; ``tracking`` - MLflow; ``summary`` / ``report`` - what comes out.

Components never refer back to the loop.
"""
