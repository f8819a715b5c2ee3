"""A Redis stream read through a consumer group: at least once, made exactly once by the journal.

An entry is acknowledged after the journal has it. What a consumer that died has read and not acknowledged is claimed
after a while; what was handed out too often, or is no request, goes to a second stream for somebody to look at.
"""

from __future__ import annotations

import json
import logging
import os
import time
from typing import TYPE_CHECKING, Any, Final

from errata.editing.errors import UserError
from errata.editing.wording import counted
from errata.orchestrator.config.stream import PASSWORD, RedisConfig
from errata.orchestrator.sources.base import Delivery, deliveries_of

if TYPE_CHECKING:
    from redis import Redis

logger = logging.getLogger(__name__)

_PAUSE: Final = 1.0
"""Seconds between two attempts while the server is away."""

Entry = tuple[bytes, dict[bytes, bytes] | None]


class RedisStream:
    """See the module. While the server is away `read` finds nothing and goes on when it is back.

    Args:
        schema: layout of the records, or ``auto``: told from each record.
        target: which answer is written where a layout offers several.

    Raises:
        UserError: the server does not answer, refuses the password, or the key holds no stream.
    """

    ended = False

    def __init__(self, config: RedisConfig, *, schema: str = "auto", target: str = "default") -> None:
        from redis import Redis
        from redis.exceptions import RedisError

        self._config, self._schema, self._target = config, schema, target
        self._client: Redis = Redis.from_url(
            config.url, password=os.environ.get(PASSWORD), socket_connect_timeout=5, socket_timeout=30
        )
        self._own: str | None = "0"
        self._claim_from: str = "0-0"
        self._claimed_at = float("-inf")
        self._away = False
        self._put_aside: set[bytes] = set()
        try:
            self._make_group()
        except RedisError as error:
            self._client.close()
            what = " ".join(str(error).split())
            raise UserError(f"stream.redis {config.url}, stream {config.stream!r}: {what}") from error

    # ---------------------------------------------------------------- the protocol

    def read(self, timeout: float) -> list[Delivery]:
        from redis.exceptions import BusyLoadingError, ConnectionError, ResponseError, TimeoutError

        try:
            deliveries = self._fetch(timeout)
        except (ConnectionError, TimeoutError, BusyLoadingError, OSError) as error:
            if not self._away:
                logger.warning("stream %s: the Redis server is away: %s", self._config.stream, error)
            self._away, self._own = True, "0"
            time.sleep(min(timeout, _PAUSE))
            return []
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise UserError(f"stream.redis: stream {self._config.stream!r}: {error}") from error
            logger.warning("stream %s: the group is gone; making it again", self._config.stream)
            self._make_group()
            return []
        if self._away:
            logger.info("stream %s: the Redis server is back", self._config.stream)
        self._away = False
        return deliveries

    def ack(self, *deliveries: Delivery) -> None:
        from redis.exceptions import RedisError

        self._put_aside.clear()
        names = list(dict.fromkeys(delivery.token[0] for delivery in deliveries))
        if not names:
            return
        try:
            self._client.xack(self._config.stream, self._config.group, *names)
        except (RedisError, OSError) as error:
            # not lost: they stay pending and are read again, and the journal knows them
            logger.warning(
                "stream %s: %d entries could not be acknowledged: %s", self._config.stream, len(names), error
            )
            self._own = "0"

    def reject(self, delivery: Delivery, reason: str) -> None:
        """Move the entry to the dead letters and acknowledge it, both or neither."""
        from redis.exceptions import RedisError

        name, fields = delivery.token
        if name in self._put_aside:  # another edit of the same entry
            return
        self._put_aside.add(name)
        noted: dict[Any, Any] = {
            **fields,
            "errata.entry": name,
            "errata.stream": self._config.stream,
            "errata.reason": reason.encode("utf-8", "replace"),
        }
        try:
            with self._client.pipeline(transaction=True) as both:
                both.xadd(self._config.dead_stream, noted)
                both.xack(self._config.stream, self._config.group, name)
                both.execute()
        except (RedisError, OSError) as error:
            logger.warning("stream %s: an entry could not be put aside: %s", self._config.stream, error)
            self._own = "0"

    def close(self) -> None:
        self._client.close()

    # ---------------------------------------------------------------- fetching

    def _make_group(self) -> None:
        from redis.exceptions import ResponseError

        try:
            self._client.xgroup_create(self._config.stream, self._config.group, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def _fetch(self, timeout: float) -> list[Delivery]:
        if self._own is not None:
            # first what this consumer had read before it died or lost the connection
            entries = self._group_read(self._own, None)
            self._own = entries[-1][0].decode() if entries else None
            if entries:
                return self._again(entries)
        now = time.monotonic()
        if self._claim_from != "0-0" or now - self._claimed_at >= self._config.claim_after_seconds / 2:
            self._claimed_at = now
            if entries := self._claim():
                return self._again(entries)
        return self._deliveries(self._group_read(">", timeout), {})

    def _group_read(self, after: str, timeout: float | None) -> list[Entry]:
        config = self._config
        block = None if timeout is None else max(1, int(timeout * 1000))  # 0 would wait for ever
        answer: Any = self._client.xreadgroup(
            config.group, config.consumer, {config.stream: after}, count=config.count, block=block
        )
        if not answer:
            return []
        # one stream was asked for; protocol 3 answers with a mapping of lists of lists
        entries = next(iter(answer.values()))[0] if isinstance(answer, dict) else answer[0][1]
        return [(name, fields) for name, fields in entries]

    def _claim(self) -> list[Entry]:
        config = self._config
        answer: Any = self._client.xautoclaim(
            config.stream,
            config.group,
            config.consumer,
            min_idle_time=int(config.claim_after_seconds * 1000),
            start_id=self._claim_from,
            count=config.count,
        )
        self._claim_from = answer[0].decode()
        return [(name, fields) for name, fields in answer[1]]

    def _again(self, entries: list[Entry]) -> list[Delivery]:
        """Entries that were handed out before, with how often."""
        pending: Any = self._client.xpending_range(
            self._config.stream, self._config.group, entries[0][0], entries[-1][0], len(entries), self._config.consumer
        )
        times = {row["message_id"]: int(row["times_delivered"]) for row in pending}
        gone = [name for name, fields in entries if not fields]
        if gone:  # deleted or trimmed away while they were pending: there is nothing left to hand out
            logger.warning("stream %s: %d pending entries were deleted by others", self._config.stream, len(gone))
            self._client.xack(self._config.stream, self._config.group, *gone)
        return self._deliveries(entries, times)

    def _deliveries(self, entries: list[Entry], times: dict[bytes, int]) -> list[Delivery]:
        deliveries: list[Delivery] = []
        for name, fields in entries:
            if not fields:
                continue
            position, token = f"{self._config.stream}/{name.decode()}", (name, fields)
            often = times.get(name, 1)
            if often > self._config.max_deliveries:
                allowed = self._config.max_deliveries
                problem = f"handed out {counted(often, 'time')} without being acknowledged; allowed: {allowed}"
                deliveries.append(Delivery(position, problem=problem, token=token))
                continue
            try:
                raw = self._record(fields)
            except (ValueError, RecursionError) as error:
                deliveries.append(Delivery(position, problem=f"malformed entry: {error}", token=token))
                continue
            deliveries += deliveries_of(raw, position, token, schema=self._schema, target=self._target)
        return deliveries

    def _record(self, fields: dict[bytes, bytes]) -> Any:
        packed = fields.get(self._config.field.encode())
        if packed is not None:
            return json.loads(packed.decode("utf-8"))
        return {name.decode("utf-8"): value.decode("utf-8") for name, value in fields.items()}
