"""What `--redis` may be.

    redis://   rediss://   unix://                                  one server; redis-py's own forms
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],.../SERVICE[/DB]   the primary that Sentinels name
    redis+cluster://[USER:PASSWORD@]HOST[:PORT],...                 a Cluster, by some of its nodes

`rediss+` is the same over TLS.  The login is that of the servers with data; Sentinels get
`?sentinel_username=` and `sentinel_password=`.  What else follows a `?` are redis-py's options of a connection.
"""

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

_SCHEMES = "should start with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
_PORTS = {"sentinel": 26379, "cluster": 6379}
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/@\s]+)(?::([0-9]{1,5}))?")


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Form(NamedTuple):
    """A URL without its address."""

    before: str
    after: str

    def at(self, address: Address) -> str:
        return f"{self.before}{address}{self.after}"


class OneServer(NamedTuple):
    url: str


class Sentinels(NamedTuple):
    seeds: tuple[Address, ...]
    sentinel: Form
    service: str
    server: Form


class Cluster(NamedTuple):
    seeds: tuple[Address, ...]
    """Some of its nodes."""
    server: Form


def parse(url: str) -> OneServer | Sentinels | Cluster:
    """Raises ValueError, which does not repeat the URL: it may hold a password."""
    scheme, _, kind = url.partition("://")[0].partition("+")
    if scheme in ("redis", "rediss", "unix") and not kind:
        return OneServer(url)
    if scheme not in ("redis", "rediss") or kind not in _PORTS:
        raise ValueError(_SCHEMES)
    try:
        parts = urlsplit(url)
    except ValueError:  # whose words may hold the password
        raise ValueError("should be a URL") from None
    login, at, hosts = parts.netloc.rpartition("@")
    seeds = tuple(_address(host, _PORTS[kind]) for host in hosts.split(","))
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    sentinel_login = _login(*(options.pop(f"sentinel_{name}", "") for name in ("username", "password")))
    query = f"?{urlencode(options)}" if options else ""
    service, database = _path(kind, parts.path)
    server = Form(f"{scheme}://{login}{at}", f"/{database}{query}")
    if kind == "cluster":
        return Cluster(seeds, server)
    return Sentinels(seeds, Form(f"{scheme}://{sentinel_login}", query), service, server)


def _address(text: str, default_port: int) -> Address:
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise ValueError("should name its servers as HOST:PORT with commas between")
    host, port = found.groups()
    return Address(host.strip("[]"), int(port or default_port))


def _path(kind: str, path: str) -> tuple[str, str]:
    service, _, database = path.removeprefix("/").partition("/")
    if kind == "cluster":
        service, database = "", service
        if database not in ("", "0"):
            raise ValueError("should name no database: a cluster has one")
    elif not service:
        raise ValueError("should name the service: redis+sentinel://HOST:PORT,HOST:PORT/SERVICE")
    if database and not database.isdecimal():
        raise ValueError("should name the database by its number")
    return unquote(service), database or "0"


def _login(username: str, password: str) -> str:
    return f"{quote(username, safe='')}:{quote(password, safe='')}@" if username or password else ""
