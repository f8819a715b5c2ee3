"""Processes that a test starts in order to kill them.

They are forked from a server that has one thread and has imported what they need, never from the test's own
process: that one may hold threads and clients of other tests (Kafka's, Ray's), which a forked copy has without their
threads, and whose collection there ends the copy by a segmentation fault.
"""

from __future__ import annotations

import multiprocessing

PROCESSES = multiprocessing.get_context("forkserver")
"""A context whose ``Process`` takes functions of a test module's top level."""

PROCESSES.set_forkserver_preload(["errata.orchestrator.sources", "errata.orchestrator.journal"])
