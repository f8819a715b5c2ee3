"""Where updates come from."""

from __future__ import annotations

from typing import Final

from pydantic import ConfigDict, Field, field_validator, model_validator

from errata.editing.closed import Closed
from errata.editing.estimation.corpus import HUB

PASSWORD: Final = "ERRATA_REDIS_PASSWORD"
"""Environment variable with the server's password: it belongs neither in a configuration nor in a log."""


class RedisConfig(Closed):
    """A Redis stream of updates. The password, if any, is taken from ERRATA_REDIS_PASSWORD."""

    url: str = "redis://127.0.0.1:6379/0"
    """Server and database; ``rediss://`` for TLS."""
    stream: str = Field("errata:edits", min_length=1)
    """Key of the stream."""
    group: str = Field("errata", min_length=1)
    """Consumer group; made when absent, from the stream's beginning."""
    consumer: str = Field("errata", min_length=1)
    """Name of this reader in the group. A run that starts again under its name goes on with what it had read."""
    field: str = Field("edit", min_length=1)
    """Field of an entry that holds a record as JSON; an entry without it is itself the record, field by field."""
    count: int = Field(128, ge=1)
    """Entries fetched at once."""
    claim_after_seconds: float = Field(60.0, ge=0, allow_inf_nan=False)
    """What another consumer has read and not acknowledged for this long is taken over."""
    max_deliveries: int = Field(5, ge=1)
    """An entry delivered more often goes to the dead letters: it has probably ended every process that read it."""
    dead_letter: str | None = None
    """Stream for entries that are no request or were handed out too often; null for ``STREAM:dead``."""

    @field_validator("url")
    @classmethod
    def _no_password(cls, value: str) -> str:
        scheme, _, rest = value.partition("://")
        if scheme not in ("redis", "rediss", "unix"):
            raise ValueError("want redis://HOST:PORT/DATABASE, rediss:// or unix://")
        if "@" in rest and ":" in rest.rpartition("@")[0]:
            raise ValueError(f"a password does not belong here; put it into the environment as {PASSWORD}")
        return value

    @property
    def dead_stream(self) -> str:
        """Key of the stream of dead letters."""
        return self.dead_letter or f"{self.stream}:dead"


KAFKA_PASSWORD: Final = "ERRATA_KAFKA_PASSWORD"
"""Environment variable with ``sasl.password``: it belongs neither in a configuration nor in a log."""

_OURS: Final = frozenset(
    {"bootstrap.servers", "group.id", "enable.auto.commit", "enable.auto.offset.store", "auto.offset.reset"}
)
_SECRET: Final = frozenset({"sasl.password", "ssl.key.password", "sasl.oauthbearer.client.secret"})


class KafkaConfig(Closed):
    """A Kafka topic of updates. The password, if any, is taken from ERRATA_KAFKA_PASSWORD. Needs the extra `kafka`."""

    servers: str = Field("127.0.0.1:9092", min_length=1)
    """Brokers to begin with: ``HOST:PORT,HOST:PORT``."""
    topic: str = Field("errata-edits", pattern=r"^[A-Za-z0-9._-]{1,249}$")
    """Its records are requests as JSON; a key is not looked at."""
    group: str = Field("errata", min_length=1)
    """Consumer group: its committed offsets say where to go on. A new one begins at the topic's beginning."""
    count: int = Field(128, ge=1)
    """Records fetched at once."""
    dead_letter: str | None = None
    """Topic for records that are no request; null for ``TOPIC.dead``."""
    session_timeout_seconds: float = Field(45.0, ge=6, allow_inf_nan=False)
    """After this long without a sign of life the partitions of a reader that died go to another."""
    options: dict[str, str] = Field({})
    """Further options of the client by librdkafka's names: ``security.protocol``, ``sasl.username``."""

    @field_validator("options")
    @classmethod
    def _no_secret_and_none_of_ours(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name in _SECRET:
                raise ValueError(f"{name} does not belong here; put it into the environment as {KAFKA_PASSWORD}")
            if name in _OURS:
                raise ValueError(f"{name} has a setting of its own, or must stay as it is for nothing to be lost")
        return value

    @property
    def dead_topic(self) -> str:
        """Topic of dead letters."""
        return self.dead_letter or f"{self.topic}.dead"


class StreamConfig(Closed):
    """Where updates come from."""

    path: str = ""
    """JSON Lines or a JSON array, or ``hub:NAME[:SPLIT]``; empty where updates come from ``stream.redis``, or by HTTP
    only."""
    follow: bool = False
    """Go on reading what is appended to the file, as ``tail -F`` does, until the run is stopped."""
    redis: RedisConfig | None = None
    """A Redis stream instead of a file."""
    kafka: KafkaConfig | None = None
    """A Kafka topic instead of a file."""
    schema_: str = Field("auto", alias="schema")
    """Layout of the records; ``auto`` tells it from the first one."""
    target: str = "default"
    """Which answer is written where a layout offers several."""
    limit: int | None = Field(None, ge=1)
    """At most this many records; null for all."""
    skip: int = Field(0, ge=0)
    """Records passed over at the beginning."""
    probes: int | None = Field(None, ge=1)
    """At most this many paraphrases, neighborhood and portability questions of each record; null for all."""
    portability: str | None = None
    """Records of the same data set with portability questions, which the stream's lack: those of a record with the same
    id are asked. CounterFact's: ``counterfact_portability_gpt4.json``; null for none."""

    model_config = ConfigDict(populate_by_name=True)

    @property
    def endless(self) -> bool:
        """Whether it ends only when the run is stopped."""
        return self.follow or self.redis is not None or self.kafka is not None

    @model_validator(mode="after")
    def _one_kind(self) -> StreamConfig:
        given = [name for name in ("redis", "kafka") if getattr(self, name) is not None]
        if len(given) > 1 or (given and (self.path or self.follow)):
            raise ValueError("give one of a file (path, follow), redis and kafka")
        if self.follow and (not self.path or self.path.startswith(HUB)):
            raise ValueError(f"follow needs a file in path, got {self.path!r}")
        if self.endless and (self.limit is not None or self.skip):
            raise ValueError("limit and skip are for a file that is read once, not with follow, redis or kafka")
        if self.endless and self.portability is not None:
            raise ValueError("portability is for a file that is read once, not with follow, redis or kafka")
        return self
