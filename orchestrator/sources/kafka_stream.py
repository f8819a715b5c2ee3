"""A Kafka topic read through a consumer group: at least once, made exactly once by the journal.

Offsets are committed after the journal has the records, never before and never by the client on its own. A run that
died reads again from the last committed offset, and the journal knows what it has by its id. What is no request goes to
a topic of dead letters, with the reason in its headers.
"""

from __future__ import annotations

import json
import logging
import os
import time
from typing import TYPE_CHECKING, Any, Final

from errata.editing.errors import UserError
from errata.orchestrator.config.stream import KAFKA_PASSWORD, KafkaConfig
from errata.orchestrator.sources.base import Delivery, deliveries_of

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message, Producer

logger = logging.getLogger(__name__)

_TIMEOUT: Final = 10.0
"""Seconds within which a broker has to answer at the start, and to take dead letters and offsets."""
_PAUSE: Final = 1.0
"""Seconds between two attempts while no broker answers."""

Place = tuple[int, int]
"""Partition and offset."""


class KafkaStream:
    """See the module. While no broker answers `read` finds nothing and goes on when one is back.

    Args:
        schema: layout of the records, or ``auto``: told from each record.
        target: which answer is written where a layout offers several.

    Raises:
        UserError: no broker answers, the password is refused, the topic is not there, or an option is unknown.
    """

    ended = False

    def __init__(self, config: KafkaConfig, *, schema: str = "auto", target: str = "default") -> None:
        try:
            from confluent_kafka import Consumer, KafkaException, Producer
        except ImportError as error:
            raise UserError("stream.kafka needs the extra 'kafka': pip install 'errata-llm[kafka]'") from error

        self._config, self._schema, self._target = config, schema, target
        self._away = False
        self._read: dict[int, tuple[int, int]] = {}
        """By partition: first and last offset of what was read and is not settled."""
        self._unsettled: set[Place] = set()
        """Dead letters that no broker took: nothing of their batch is committed, and it is read again."""
        self._put_aside: set[Place] = set()
        common = {"bootstrap.servers": config.servers, "error_cb": self._complain, **_secrets(), **config.options}
        try:
            self._producer: Producer = Producer(common)
            self._consumer: Consumer = Consumer(
                {
                    **common,
                    "group.id": config.group,
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "auto.offset.reset": "earliest",
                    "session.timeout.ms": int(config.session_timeout_seconds * 1000),
                }
            )
        except (KafkaException, TypeError, ValueError) as error:
            raise UserError(f"stream.kafka: {_what(error)}") from error
        try:
            topics = self._consumer.list_topics(config.topic, timeout=_TIMEOUT).topics
            if topics[config.topic].error is not None:
                raise UserError(f"stream.kafka {config.servers}, topic {config.topic!r}: {topics[config.topic].error}")
            self._consumer.subscribe([config.topic])
        except KafkaException as error:
            self._consumer.close()
            raise UserError(f"stream.kafka {config.servers}, topic {config.topic!r}: {_what(error)}") from error
        except UserError:
            self._consumer.close()
            raise

    # ---------------------------------------------------------------- the protocol

    def read(self, timeout: float) -> list[Delivery]:
        deliveries: list[Delivery] = []
        self._read.clear()
        for message in self._consumer.consume(self._config.count, timeout=max(0.0, timeout)):
            error = message.error()
            if error is not None:
                self._report(error)
                continue
            if self._away:
                logger.info("topic %s: a broker answers again", self._config.topic)
                self._away = False
            partition, offset = _place(message)
            first, _ = self._read.get(partition, (offset, offset))
            self._read[partition] = (first, offset)
            deliveries += self._deliveries(message)
        if self._away and not deliveries:
            time.sleep(min(timeout, _PAUSE))
        return deliveries

    def ack(self, *deliveries: Delivery) -> None:
        """Commit the offsets behind everything that was read: the journal has it, or the dead letters do."""
        from confluent_kafka import KafkaException, TopicPartition

        topic, read = self._config.topic, dict(self._read)
        self._read.clear()
        self._put_aside.clear()
        if not read:
            return
        if self._unsettled:
            self._unsettled.clear()
            for partition, (first, _) in read.items():  # the journal knows what it has: reading again is harmless
                self._consumer.seek(TopicPartition(topic, partition, first))
            return
        offsets = [TopicPartition(topic, partition, last + 1) for partition, (_, last) in read.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            # not lost: who reads these partitions next begins before them, and the journal knows them
            logger.warning("topic %s: offsets could not be committed: %s", topic, _what(error))

    def reject(self, delivery: Delivery, reason: str) -> None:
        """Send the record to the dead letters; its offset is committed only if a broker has taken it."""
        from confluent_kafka import KafkaException

        message: Message = delivery.token
        place = _place(message)
        if place in self._put_aside:  # another edit of the same record
            return
        self._put_aside.add(place)
        headers: list[tuple[str, str | bytes | None]] = [
            *(message.headers() or []),
            ("errata.reason", reason.encode("utf-8", "replace")),
            ("errata.topic", self._config.topic.encode()),
            ("errata.place", f"{place[0]}/{place[1]}".encode()),
        ]
        failures: list[Any] = []

        def settled(error: Any, _: Any) -> None:
            if error is not None:
                failures.append(error)

        try:
            self._producer.produce(
                self._config.dead_topic, value=message.value(), key=message.key(), headers=headers, on_delivery=settled
            )
            waiting = self._producer.flush(_TIMEOUT)
        except (KafkaException, BufferError) as error:
            failures.append(error)
            waiting = 0
        if failures or waiting:
            logger.warning("topic %s: record %s/%s could not be put aside", self._config.topic, *place)
            self._unsettled.add(place)

    def close(self) -> None:
        self._consumer.close()

    # ---------------------------------------------------------------- records

    def _deliveries(self, message: Message) -> list[Delivery]:
        partition, offset = _place(message)
        position = f"{self._config.topic}/{partition}/{offset}"
        value = message.value()
        if value is None:  # a tombstone of a compacted topic
            return [Delivery(position, problem="the record has no value", token=message)]
        try:
            raw = json.loads(value.decode("utf-8") if isinstance(value, bytes) else value)
        except (ValueError, RecursionError) as error:
            return [Delivery(position, problem=f"malformed record: {error}", token=message)]
        return list(deliveries_of(raw, position, message, schema=self._schema, target=self._target))

    def _report(self, error: Any) -> None:
        if error.retriable() or error.code() < 0:
            self._complain(error)
            return
        raise UserError(f"stream.kafka: topic {self._config.topic!r}: {error.str()}")

    def _complain(self, error: Any) -> None:
        if not self._away:
            logger.warning("topic %s: %s", self._config.topic, error.str())
        self._away = True


def _place(message: Message) -> Place:
    partition, offset = message.partition(), message.offset()
    assert partition is not None and offset is not None
    return partition, offset


def _secrets() -> dict[str, str]:
    password = os.environ.get(KAFKA_PASSWORD)
    return {} if password is None else {"sasl.password": password}


def _what(error: BaseException) -> str:
    """The client's own words, in one line."""
    inner = error.args[0] if error.args else error
    text = inner.str() if hasattr(inner, "str") else str(inner)
    return " ".join(str(text).split())
