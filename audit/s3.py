"""The one way to S3, for anchors and for archives. Credentials are found as the AWS SDK finds them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_CONNECT_SECONDS = 5


class S3Failed(Exception):
    """It refuses, or cannot be reached; the text is a sentence. `status` is that of the answer, 0 without one."""

    def __init__(self, sentence: str, status: int = 0) -> None:
        super().__init__(sentence)
        self.status = status


def connect(region: str | None, endpoint: str | None, *, attempts: int, answer_seconds: int) -> Any:
    """A client of boto3. Nothing is asked yet. An endpoint of one's own is asked by path: few have a name a bucket."""
    # Here, since importing it takes a third of a second, and few processes need it.
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=answer_seconds,
        retries={"mode": "standard", "total_max_attempts": attempts},
        s3={"addressing_style": "path"} if endpoint else {},
    )
    return boto3.session.Session().client("s3", region_name=region, endpoint_url=endpoint, config=config)


@contextmanager
def failing(place: str) -> Iterator[None]:
    """Turns whatever S3 and its client say into S3Failed."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        told, status = error.response.get("Error", {}), error.response["ResponseMetadata"]["HTTPStatusCode"]
        raise S3Failed(f"{place} refuses: {told.get('Code')}: {told.get('Message')}", status) from error
    except Boto3Error as error:
        raise S3Failed(f"{place} refuses: {error}") from error
    except BotoCoreError as error:
        raise S3Failed(f"{place} cannot be reached: {error}") from error
