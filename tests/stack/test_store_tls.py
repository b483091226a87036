"""The Redis store over TLS, as managed services offer it.  Valkey stands behind an end of TLS of our own, as its
package speaks none."""

import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme

from gateway.errors import StoreLost
from gateway.store.home import connect
from gateway.store.redis import RedisStore
from tests.stack import valkeys
from tests.stack.proxy import HOST, Proxy
from tests.store_contract import entry, lead, peek_ids, put

AUTHORITY = trustme.CA()


@contextlib.asynccontextmanager
async def guarded(name: str) -> AsyncIterator[Proxy]:
    """A server with a certificate of this name."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert(name).configure_cert(tls)
    with valkeys.valkeys() as running:
        line = Proxy(HOST, running.start().port, tls=tls)
        await line.start()
        yield line
        await line.aclose()


def store_at(line: Proxy, authority: trustme.CA, folder: Path) -> RedisStore:
    file = folder / "ca.pem"
    authority.cert_pem.write_to_path(file)
    return RedisStore(
        connect(f"rediss://{HOST}:{line.port}?ssl_ca_certs={quote(str(file))}"), "model", timeout_s=10
    )


@pytest.mark.asyncio
async def test_a_queue_over_tls_works_until_its_server_goes(tmp_path: Path) -> None:
    async with guarded(HOST) as line:
        store = store_at(line, AUTHORITY, tmp_path)
        await put(store, entry("a/0", payload=bytes(10**6)), entry("a/1"))
        assert await peek_ids(store) == ["a/0", "a/1"]
        (claimed,) = await store.claim("replica", await lead(store), [("a/0", 0)], {})
        assert claimed.payload == bytes(10**6)
        await store.post({"gateway-1": b"letter"})
        assert [letter for _, letter in await store.collect("gateway-1", "", 9, 1.0)] == [b"letter"]
        await line.aclose()
        with pytest.raises(StoreLost):
            await store.ping()
        await store.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("name", "authority"), [(HOST, trustme.CA()), ("other.example", AUTHORITY)], ids=["authority", "name"]
)
async def test_a_server_that_cannot_show_who_it_is_gets_nothing(
    name: str, authority: trustme.CA, tmp_path: Path
) -> None:
    async with guarded(name) as line:
        store = store_at(line, authority, tmp_path)
        with pytest.raises(StoreLost):
            await put(store, entry("a/0"))
        await store.aclose()
