"""Readers of a Redis stream killed at random moments, with signal 9: nothing is lost and nothing doubled."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import redis

from errata.orchestrator.journal import Journal
from tests.helpers.streams import new_journal, record
from tests.unit.orchestrator.sources.test_redis_stream import add, pending, start_server, subjects

READER = dedent("""
    import sys
    from pathlib import Path
    from errata.orchestrator.config.stream import RedisConfig
    from errata.orchestrator.journal import Journal
    from errata.orchestrator.sources import take_in
    from errata.orchestrator.sources.redis_stream import RedisStream
    url, path = sys.argv[1:]
    source = RedisStream(RedisConfig(url=url, count=64, max_deliveries=100))
    with Journal.open(Path(path)) as journal:
        while True:
            take_in(journal, source, 0.2)
            print(journal.counts().requests, flush=True)
""")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_at_random_moments_over_5000_records(tmp_path: Path) -> None:
    """Each reader dies somewhere between reading, the journal's transaction and its acknowledgement."""
    total, path, random_ = 5000, tmp_path / "journal.sqlite", random.Random(7)
    new_journal(path).close()
    port, server = start_server(tmp_path)
    url = f"redis://127.0.0.1:{port}/0"
    root = str(Path(__file__).parents[4])
    client: Any = redis.Redis.from_url(url)
    try:
        add(client, *(record(number) for number in range(total)))
        known, deaths = 0, 0
        until = time.monotonic() + 850
        while known < total or pending(client):
            assert time.monotonic() < until, f"{known} of {total} after {deaths} deaths"
            reader = subprocess.Popen(
                [sys.executable, "-c", READER, url, str(path)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": root},
            )
            assert reader.stdout is not None
            patience = known + random_.randrange(200, 1200)
            for line in reader.stdout:
                known = int(line)
                if known >= patience or (known >= total and not pending(client)):
                    break
            time.sleep(random_.random() * 0.02)  # not to wait for anything: the moment of its death is drawn
            reader.send_signal(signal.SIGKILL)
            assert reader.wait() == -signal.SIGKILL
            deaths += 1
        assert deaths >= 4 and not client.exists("errata:edits:dead")
    finally:
        client.close()
        server.kill()
        server.wait()
    with Journal.open(path, read_only=True) as journal:
        assert sorted(subjects(journal)) == sorted(f"S{number}" for number in range(total)), "0 lost, 0 doubled"
    print({"records": total, "deaths": deaths})
