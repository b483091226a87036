"""Who may come in: API keys by their digests, and where they are read from.

Keys are long and random, so their SHA-256 tells nothing of them, and whoever has seen the file cannot come in.
The sources are read again every few seconds; of one that cannot be read what was last known stays in force.
"""

import asyncio
import contextlib
import hashlib
import secrets
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import structlog
from msgspec import Meta

from gateway.errors import StoreLost
from gateway.ports import Tenants
from gateway.quota import Quota
from gateway.request import ServiceClass, Tenant

REFRESH_S = 2.0

log = structlog.get_logger()

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
Bound = Annotated[int, Meta(ge=1, le=10**12)]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key, as the keys file and Redis have it under its name."""

    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    """Of the key, in hexadecimal."""
    models: list[str] | None = None
    highest_class: ServiceClass = ServiceClass.PRIORITY
    requests_per_minute: Bound | None = None
    tokens_per_minute: Bound | None = None
    max_streams: Bound | None = None
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0

    def tenant(self, name: str) -> Tenant:
        return Tenant(
            name=name,
            models=None if self.models is None else frozenset(self.models),
            highest_class=self.highest_class,
            quota=Quota(self.requests_per_minute, self.tokens_per_minute, self.max_streams),
            weight=self.weight,
        )


Records = Mapping[str, Record]


class BadKeys(Exception):
    """Keys that cannot be used; the message is one line and repeats none of them."""


def make_key() -> str:
    return "bs-" + secrets.token_urlsafe(32)


def digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def record(name: str, fields: object) -> Record:
    """Raises BadKeys."""
    try:
        msgspec.convert(name, Name)
        return msgspec.convert(fields, Record)
    except msgspec.ValidationError as error:
        raise BadKeys(f"key {name[:64]!r}: {error}") from None


def encode(record: Record) -> bytes:
    return msgspec.json.encode(record)


def read_file(file: Path) -> Records:
    """Raises BadKeys."""
    try:
        return _parse(tomllib.loads(file.read_text()))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadKeys(f"keys file {file}: {reason}") from None
    except BadKeys as bad:
        raise BadKeys(f"keys file {file}: {bad}") from None


def decode(stored: Mapping[str, bytes]) -> Records:
    """Raises BadKeys."""
    try:
        return _parse({name: msgspec.json.decode(data) for name, data in stored.items()})
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadKeys(f"keys in Redis: {error}") from None


def _parse(tree: Mapping[str, object]) -> Records:
    records = {name: record(name, fields) for name, fields in tree.items()}
    names: dict[str, str] = {}
    for name, found in records.items():
        if (other := names.setdefault(found.sha256, name)) != name:
            raise BadKeys(f"'{other}' and '{name}' are the same key")
    return records


class Keyring:
    """`plain` are keys without bounds.  `file`, and the records that `tenants` has, are read by `refresh`."""

    def __init__(
        self, plain: Iterable[str] = (), file: Path | None = None, tenants: Tenants | None = None
    ) -> None:
        digests = [digest(key.encode()) for key in plain]
        # The same in every gateway, in whatever order they are given.
        self._plain = {f"key-{sha256[:12]}": Record(sha256) for sha256 in digests}
        self._file = file
        self._tenants = tenants
        self._from_file: Records = {} if file is None else read_file(file)
        self._from_store: Records = {}
        self._version = 0
        self._complaint = ""
        self._index()

    @property
    def is_open(self) -> bool:
        """No key is asked for."""
        return not self._plain and self._file is None and self._tenants is None

    def tenant(self, key: bytes) -> Tenant | None:
        """Whose key this is."""
        return self._by_digest.get(digest(key))

    async def run(self) -> NoReturn:
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_S)

    async def refresh(self) -> None:
        """Read the sources again."""
        try:
            if self._file is not None:
                self._from_file = await asyncio.to_thread(read_file, self._file)
            if self._tenants is not None:
                with contextlib.suppress(StoreLost):
                    await self._read_store(self._tenants)
        except BadKeys as bad:
            self._complain(str(bad))
        else:
            self._complaint = ""
        self._index()

    async def _read_store(self, tenants: Tenants) -> None:
        found = await tenants.keys(self._version)
        if found is None:
            return
        version, stored = found
        if not version:
            raise BadKeys("keys in Redis: it has lost them; those last known stay in force")
        self._version, self._from_store = version, decode(stored)

    def _complain(self, complaint: str) -> None:
        """Once."""
        if complaint != self._complaint:
            log.error("keys.unusable", reason=complaint)
        self._complaint = complaint

    def _index(self) -> None:
        # What stands nearer to the gateway goes before what is shared.
        records = {**self._from_store, **self._from_file, **self._plain}
        self._by_digest = {record.sha256: record.tenant(name) for name, record in records.items()}
