"""Files and file systems as the store needs them: whichever they are, a fault has one name and a time one form."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from farm.errors import StoreFull

FULL = ("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage")


@contextmanager
def telling_when_full(uri: str) -> Iterator[None]:
    """A full disk or a spent quota by its own name, whichever store says so."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT) or any(word in str(e) for word in FULL):
            raise StoreFull(f"there is no room left in the store {uri}: {e.strerror or e}") from e
        raise


def options_of(uri: str) -> dict[str, Any]:
    """Of the file system: no listing is remembered, because others write too, and no connection may hang for long."""
    protocol = uri.partition("://")[0] if "://" in uri else ""
    waits = {"connect_timeout": 10, "read_timeout": 30, "retries": {"mode": "standard", "max_attempts": 3}}
    remembered = {"use_listings_cache": False} if protocol not in ("", "file") else {}
    return remembered | ({"config_kwargs": waits} if protocol in ("s3", "s3a") else {})


def seconds_of(told: Mapping[str, Any]) -> float:
    """When a file was changed, from what fsspec tells of it."""
    when = next((told[name] for name in ("mtime", "LastModified", "updated") if told.get(name)), 0.0)
    if isinstance(when, str):  # gcsfs
        when = datetime.fromisoformat(when.replace("Z", "+00:00"))
    return when.timestamp() if isinstance(when, datetime) else float(when)


def checksum_of(data: bytes | Path) -> tuple[str, int]:
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest(), len(data)
    with data.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest(), data.stat().st_size


def write_part(part: Path, data: bytes | Path) -> None:
    """Write a file under its temporary name: a link where it is a file already, and safe on disk either way."""
    if isinstance(data, Path):
        try:
            os.link(data, part)
        except OSError:
            shutil.copyfile(data, part)
    else:
        part.write_bytes(data)
    with part.open("rb") as f:  # so that after a power cut no name stands for half a file
        os.fsync(f.fileno())
