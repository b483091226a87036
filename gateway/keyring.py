"""Who may come in: API keys by their digests, and where they are read from.

Keys are long and random, so their SHA-256 tells nothing of them, and whoever has seen the file cannot come in.
The sources are read again every few seconds; of one that cannot be read what was last known stays in force.
"""

import asyncio
import contextlib
import hashlib
import secrets
import tomllib
from collections.abc import Iterable, Iterator, Mapping
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
    with _told(f"keys file {file}"):
        return _parse_file(file.read_bytes())


def _parse_file(raw: bytes) -> Records:
    return _parse(tomllib.loads(raw.decode()))


def _decode(stored: Mapping[str, bytes]) -> Records:
    return _parse({name: msgspec.json.decode(data) for name, data in stored.items()})


@contextlib.contextmanager
def _told(source: str) -> Iterator[None]:
    """Whatever is wrong with a source becomes a BadKeys that names it."""
    try:
        yield
    except OSError as error:
        raise BadKeys(f"{source}: {error.strerror}") from None
    except (BadKeys, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise BadKeys(f"{source}: {error}") from None


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
        self._raw: bytes | None = None
        """What the file held when it was last read and good."""
        self._tenants = tenants
        self._version = 0
        self.is_complete = tenants is None
        """Every source was read: a key that is not known is nobody's."""
        self._from_file: Records = {} if file is None else read_file(file)
        self._from_store: Records = {}
        self._complaints: set[str] = set()
        """About what is wrong now: each is told once."""
        self._index()

    @property
    def is_open(self) -> bool:
        """No key is asked for."""
        return not self._plain and self._file is None and self._tenants is None

    def tenant(self, key: bytes) -> Tenant | None:
        """Whose key this is, as far as is known."""
        return self._by_digest.get(digest(key))

    async def run(self) -> NoReturn:
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_S)

    async def refresh(self) -> None:
        """Read the sources again."""
        complaints = set()
        for read in (self._read_file, self._read_store):
            try:
                await read()
            except BadKeys as bad:
                complaints.add(str(bad))
        for complaint in complaints - self._complaints:
            log.error("keys.unusable", reason=complaint)
        self._complaints = complaints

    async def _read_file(self) -> None:
        if self._file is None:
            return
        with _told(f"keys file {self._file}"):
            raw = await asyncio.to_thread(self._file.read_bytes)
            if raw != self._raw:
                self._from_file, self._raw = await asyncio.to_thread(_parse_file, raw), raw
                self._index()

    async def _read_store(self) -> None:
        try:
            found = None if self._tenants is None else await self._tenants.keys(self._version)
        except StoreLost:
            return
        if found is not None:
            version, stored = found
            with _told("keys in Redis"):
                if not version:
                    raise BadKeys("it has lost them; those last known stay in force")
                self._from_store, self._version = _decode(stored), version
            self._index()
        self.is_complete = True

    def _index(self) -> None:
        # What stands nearer to the gateway goes before what is shared.
        records = {**self._from_store, **self._from_file, **self._plain}
        self._by_digest = {record.sha256: record.tenant(name) for name, record in records.items()}
