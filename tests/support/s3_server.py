"""A real S3 server on loopback, which can be stopped and started, and its objects looked at."""

import json
import logging
import os
from collections.abc import Mapping

import boto3
from botocore.config import Config
from moto.server import ThreadedMotoServer

# How any client finds it and signs its requests; one try a request, so that a stopped server is noticed at once.
ENVIRONMENT: Mapping[str, str] = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDINTESTS12",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-of-the-tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
}


class S3Server:
    """The server. Objects outlive a stop."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._port = 0
        self.start()
        self._buckets = 0
        keys = {"aws_access_key_id": ENVIRONMENT["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": ENVIRONMENT["AWS_SECRET_ACCESS_KEY"]}
        config = Config(retries={"total_max_attempts": 3})
        self._client = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", config=config, **keys)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.url}

    def start(self) -> None:
        """Start it, at the same port as before."""
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        """Stop it: connections are refused from now on."""
        listening = self._server._server
        self._server.stop()
        assert listening is not None
        listening.server_close()

    def make_bucket(self) -> str:
        """Make an empty bucket; return its name."""
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        self._client.create_bucket(Bucket=name)
        return name

    def forbid_writing(self, bucket: str) -> None:
        """Let a bucket be read only."""
        rule = {"Effect": "Deny", "Principal": "*", "Action": ["s3:PutObject"], "Resource": f"arn:aws:s3:::{bucket}/*"}
        self._client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]}))

    def write(self, bucket: str, key: str, data: bytes) -> None:
        """Write an object, as another program may."""
        self._client.put_object(Bucket=bucket, Key=key, Body=data)

    def remove(self, bucket: str, key: str) -> None:
        """Remove an object."""
        self._client.delete_object(Bucket=bucket, Key=key)

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Return all objects of a bucket."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {key: self._client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def set_environment(values: Mapping[str, str]) -> dict[str, str | None]:
    """Set variables of this process; return what they were."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    return before


def restore_environment(before: Mapping[str, str | None]) -> None:
    """Set variables back."""
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
