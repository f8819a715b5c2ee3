"""Streams that go on: a file that grows, a Redis stream, a Kafka topic.

A source hands out records and is told what became of them. It forgets a record only after the journal has it, so
whatever dies in between is handed out again; the journal knows a request by its id, so again changes nothing.
"""

from errata.orchestrator.sources.base import Delivery, Pump, Source, Taken, take_in

__all__ = ["Delivery", "Pump", "Source", "Taken", "take_in"]
