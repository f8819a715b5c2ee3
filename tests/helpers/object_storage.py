"""A local S3 server (moto) over real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest

REGION = "us-east-1"


@contextmanager
def local_s3(bucket: str) -> Iterator[str]:
    """Address of a server with a bucket, until the block ends."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        boto3.client(
            "s3", endpoint_url=address, aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION
        ).create_bucket(Bucket=bucket)
        yield address
    finally:
        server.stop()


def use_s3(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Lead ``s3://`` to that server."""
    for key, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": address,
    }.items():
        monkeypatch.setenv(key, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
