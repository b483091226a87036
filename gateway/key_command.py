"""`bucketserve key`: makes an API key, and its record for the keys file or for Redis."""

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import msgspec

from gateway import keyring
from gateway.errors import Failed
from gateway.keyring import BadKeys, Record
from gateway.options import SettingsError
from gateway.ports import Tenants
from gateway.request import ServiceClass
from gateway.store import home
from gateway.store.redis_tenants import RedisTenants

T = TypeVar("T")

REDIS_ENV = "BUCKETSERVE_REDIS"
_TIMEOUT_S = 5.0
_NO_VERSION = -1


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="Of the tenant: letters, digits, - and _.")
    parser.add_argument("--models", metavar="NAMES", help="Those it may use, with commas between (default: all).")
    classes = [service_class.value for service_class in ServiceClass]
    parser.add_argument(
        "--highest-class", choices=classes, help="It may ask for this one and those below (default: priority)."
    )
    parser.add_argument(
        "--requests-per-minute", metavar="COUNT", type=int, help="Requests in any 60 s (default: no bound)."
    )
    parser.add_argument(
        "--tokens-per-minute",
        metavar="TOKENS",
        type=int,
        help="Tokens of prompts and answers together in any 60 s (default: no bound).",
    )
    parser.add_argument(
        "--max-streams",
        metavar="COUNT",
        type=int,
        help="Requests at a time, streamed or not (default: no bound).",
    )
    parser.add_argument(
        "--weight",
        metavar="FACTOR",
        type=float,
        help="Its share against others' when several wait, up to 1000 (default: 1).",
    )
    parser.add_argument(
        "--redis",
        metavar="URL",
        nargs="?",
        const="",
        help=f"Put the record into this Redis (without URL: {REDIS_ENV}) instead of printing it.",
    )
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--replace", action="store_true", help="If Redis has a key of this name, end that one.")
    change.add_argument("--remove", action="store_true", help="Remove the key of this name from Redis instead.")


def start(given: argparse.Namespace, environ: Mapping[str, str]) -> tuple[str, str]:
    """What to tell whoever asked, and what goes into the keys file.  Raises SettingsError, Failed,
    StoreLost."""
    url = environ.get(REDIS_ENV, "") if given.redis == "" else given.redis
    if url == "":
        raise SettingsError(f"--redis needs a URL, here or in {REDIS_ENV}")
    if url is None and (given.remove or given.replace):
        raise SettingsError("--remove and --replace go with --redis; from a file, remove the lines")
    if url is not None and given.remove:
        asyncio.run(_remove(given.name, url))
        return f"removed '{given.name}'", ""
    key = keyring.make_key()
    record = _record(given, key)
    if url is not None:
        asyncio.run(_ask(url, lambda tenants: put(tenants, given.name, record, replace=given.replace)))
    return f"the key of '{given.name}', shown this once: {key}", toml(given.name, record) if url is None else ""


def _record(given: argparse.Namespace, key: str) -> Record:
    fields = {name: value for name, value in vars(given).items() if name in Record.__struct_fields__}
    fields = {name: value for name, value in fields.items() if value is not None}
    if "models" in fields:
        fields["models"] = names = [name.strip() for name in given.models.split(",")]
        if not all(names):
            raise SettingsError(f"--models {given.models!r} has an empty name; without --models it may use all")
    try:
        return keyring.record(given.name, {"sha256": keyring.digest(key.encode()), **fields})
    except BadKeys as bad:
        raise SettingsError(str(bad)) from None


def toml(name: str, record: Record) -> str:
    """The record as it stands in the keys file."""
    fields = msgspec.to_builtins(record)
    return "\n".join([f"[{name}]", *(f"{field} = {json.dumps(value)}" for field, value in fields.items())])


async def put(tenants: Tenants, name: str, record: Record, *, replace: bool) -> None:
    """Raises Failed if it would end a key that is in use, StoreLost."""
    _, known = await tenants.keys(_NO_VERSION) or (0, {})
    if name in known and not replace:
        raise Failed(f"Redis has a key '{name}' already: choose another name, or --replace, which ends that one")
    await tenants.set_key(name, keyring.encode(record))


async def _remove(name: str, url: str) -> None:
    if not await _ask(url, lambda tenants: tenants.drop_key(name)):
        raise SettingsError(f"Redis has no key '{name}'")


async def _ask(url: str, question: Callable[[RedisTenants], Awaitable[T]]) -> T:
    try:
        found = home.connect(url, connect_timeout_s=_TIMEOUT_S)
    except ValueError as error:
        raise SettingsError(f"--redis: {error}") from None
    tenants = RedisTenants(found, timeout_s=_TIMEOUT_S)
    try:
        return await question(tenants)
    finally:
        await tenants.aclose()
