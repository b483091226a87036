"""Attempts to get in without a right, over a bound, or across to another tenant: each is refused, by its table.

The front, the origin and the quotas are the product's, over a made-up engine; the two gateways share the tenants.
"""

import asyncio
import contextlib
import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web

from gateway.errors import StoreLost
from gateway.keyring import Keyring, digest
from gateway.ports import Denied, Entry, Granted, Limits
from gateway.quota import Quota
from gateway.server import make_app, make_runner
from gateway.store.memory import MemoryStore
from gateway.store.memory_tenants import MemoryTenants
from tests import bad_inputs
from tests.bad_inputs import CHAT, TEXT, Bad
from tests.unit.fakes.engine import FakeBackend
from tests.unit.fakes.tokenizer import CharTokenizer
from tests.unit.fakes.world import World

GOOD = "bs-the-good-key"
KEYS = {
    "good": (GOOD, ""),
    "elsewhere": ("bs-elsewhere", 'models = ["another"]'),
    "nowhere": ("bs-nowhere", "models = []"),
    "modest": ("bs-modest", 'highest_class = "default"'),
    "bulk": ("bs-bulk", 'highest_class = "flex"'),
    "seldom": ("bs-seldom", "requests_per_minute = 2"),
    "short": ("bs-short", "tokens_per_minute = 100"),
    "single": ("bs-single", "max_streams = 1"),
}


def keys_file(folder: Path) -> Path:
    file = folder / "keys.toml"
    stanzas = [f'[{name}]\nsha256 = "{digest(key.encode())}"\n{rest}' for name, (key, rest) in KEYS.items()]
    file.write_text("\n".join(stanzas))
    return file


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> Any:
        return json.loads(self.body)["error"]

    @property
    def outline(self) -> tuple[int, str, str | None, str | None]:
        """Status, type, code, param."""
        return self.status, self.error["type"], self.error["code"], self.error["param"]


class WatchedStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.tenants: list[str] = []
        """Of the tickets put."""

    async def put(self, entries: Sequence[Entry], limits: Limits) -> list[float]:
        self.tenants += [entry.ticket.tenant for entry in entries]
        return await super().put(entries, limits)


@dataclass
class Site:
    """Gateways behind their URLs."""

    urls: list[str]
    worlds: list[World]
    stores: list[WatchedStore]
    tenants: MemoryTenants

    async def ask(self, key: str = "", at: int = 0, path: str = TEXT, **fields: Any) -> Answer:
        """A completion; `x_...` and `last_event_id` are headers."""
        given = [name for name in fields if name.startswith(("x_", "last_"))]
        headers = {name.replace("_", "-"): fields.pop(name) for name in given}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        body = {"model": "fake", "prompt": "hi", "max_tokens": 2, "ignore_eos": True} | fields
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.urls[at] + path, json=body, headers=headers) as response,
        ):
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, key: str, last_event_id: str = "") -> Answer:
        headers = {"Authorization": f"Bearer {key}"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        async with (
            aiohttp.ClientSession() as session,
            session.get(self.urls[0] + path, headers=headers) as response,
        ):
            return Answer(response.status, response.headers, await response.read())

    @contextlib.asynccontextmanager
    async def streaming(self, key: str, at: int = 0) -> AsyncIterator[str]:
        """While a long stream is open; its call."""
        body = {"model": "fake", "prompt": "hi", "max_tokens": 500, "ignore_eos": True, "stream": True}
        headers = {"Authorization": f"Bearer {key}"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.urls[at] + TEXT, json=body, headers=headers) as response,
        ):
            assert response.status == 200
            await response.content.readuntil(b"\n\n")
            yield response.headers["x-request-id"]

    async def settled(self) -> None:
        """Nothing runs, and the store knows."""
        for world in self.worlds:
            await world.origin.idle()


class LostTenants(MemoryTenants):
    async def reserve(
        self, tenant: str, id: str, tokens: int, quota: Quota, ttl_s: float, former: str = ""
    ) -> Granted | Denied:
        await super().reserve(tenant, id, tokens, quota, ttl_s, former)
        raise StoreLost("no answer in time")


def visit(
    scenario: Callable[[Site], Awaitable[None]], folder: Path, tenants: Callable[[], MemoryTenants] = MemoryTenants
) -> list[Any]:
    """Two gateways with the keys above; the log's lines."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            site = Site([], [], [WatchedStore(), WatchedStore()], tenants())
            for number, store in enumerate(site.stores):
                world = World(store, [FakeBackend(f"r{number}")], tenants=site.tenants)
                site.worlds.append(await stack.enter_async_context(world.running()))
                keyring = Keyring(file=keys_file(folder))
                app = make_app(world.origin, CharTokenizer(), world.metrics, keyring=keyring)
                runner = make_runner(app)
                await runner.setup()
                stack.push_async_callback(runner.cleanup)
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                host, port = runner.addresses[0]
                site.urls.append(f"http://{host}:{port}")
            await scenario(site)
            await site.settled()

    with structlog.testing.capture_logs() as logs:
        asyncio.run(main())
    return logs


# In


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("Authorization", f"Bearer {key}"),)


STRANGERS = {
    "no key": (),
    "an empty key": bearer(""),
    "a wrong key": bearer("bs-wrong"),
    "a key's beginning": bearer(GOOD[:-1]),
    "a key and more": bearer(GOOD + "x"),
    "a key in capitals": bearer(GOOD.upper()),
    "two keys in one": bearer(f"{GOOD} {GOOD}"),
    "a key with a comma": bearer(f"{GOOD},"),
    "a key's digest": bearer(digest(GOOD.encode())),
    "a tenant's name": bearer("good"),
    "a key that is no text": bearer("\u00e9\u00ff"),
    "a key of 7 kB": bearer("x" * 7000),
    "no scheme": (("Authorization", GOOD),),
    "another scheme": (("Authorization", f"Token {GOOD}"),),
    "a scheme alone": (("Authorization", "Bearer"),),
    "a password": (("Authorization", "Basic " + b64encode(f"user:{GOOD}".encode()).decode()),),
    "a wrong key before a good one": (*bearer("bs-wrong"), *bearer(GOOD)),
    "a header of others": (("x-api-key", GOOD), ("api-key", GOOD)),
    "a cookie": (("Cookie", f"Authorization=Bearer {GOOD}; key={GOOD}"),),
    "a tenant claimed": (("x-tenant", "good"), ("x-llm-d-inference-fairness-id", "good"), ("user", "good")),
    "a proxy's word": (("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-Authorization", f"Bearer {GOOD}")),
}


def strangers() -> Iterator[Bad]:
    body = json.dumps({"model": "fake", "prompt": "hi", "user": "good", "api_key": GOOD}).encode()
    for name, headers in STRANGERS.items():
        yield Bad(name, body, TEXT, status=401, headers=(*bad_inputs.JSON_TYPE, *headers))
    for path in (TEXT, CHAT, "/v1/models", "/v1/models/fake", "/v1/streams/x", "/v1/", "/v1/%2e%2e/v1/models"):
        for method in ("GET", "POST"):
            yield Bad(f"{method} {path}", body, path, method, status=401)
    for path in (f"{TEXT}?api_key={GOOD}", f"{TEXT}?Authorization=Bearer%20{GOOD}", f"{TEXT}?key={GOOD}#{GOOD}"):
        yield Bad(f"a key in the address {path}", body, path, status=401)
    yield Bad("no key and no JSON", b"{", TEXT, status=401)
    yield Bad(
        "no key and a terabyte", b"", TEXT, status=401, headers=(("Content-Length", str(2**40)),), framed=False
    )
    yield Bad("a header of 100 kB", body, TEXT, status=400, headers=bearer("x" * 100_000), is_http=False)


def test_strangers_are_told_nothing_but_to_send_a_key(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        for bad in strangers():
            answer = await bad_inputs.send(site.urls[0], bad, "fake")
            assert answer.status == bad.status, (bad.name, answer)
            if bad.is_http:
                assert answer.headers["www-authenticate"] == "Bearer", bad.name
                assert json.loads(answer.body) == {
                    "error": {
                        "message": "Send a valid API key as 'Authorization: Bearer KEY'.",
                        "type": "invalid_request_error",
                        "param": None,
                        "code": "invalid_api_key",
                    }
                }
        for path in ("/%761/models", "//v1/models", "/v1", "/V1/models", "/v1;/models", "/./v1/models"):
            got = await bad_inputs.send(site.urls[0], Bad(path, path=path, method="GET"), "fake")
            assert got.status in (401, 404), path
        assert not any(world.origin.num_live for world in site.worlds)
        assert (await site.ask(GOOD)).status == 200

    logs = visit(scenario, tmp_path)
    assert GOOD not in str(logs)


def test_neither_logs_nor_metrics_nor_answers_repeat_a_key(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        said = [
            *[await site.ask(key, prompt="secret prompt") for key, _ in KEYS.values()],
            await site.ask(GOOD, stream=True, user="hush-user"),
            await site.ask("bs-wrong"),
            await site.ask(GOOD, path=f"{TEXT}?key={GOOD}"),
            await site.ask(GOOD, x_deadline_ms="soon"),
            await site.get("/metrics", GOOD),
        ]
        for answer in said:
            assert "bs-" not in str(answer.headers) + answer.body.decode()

    logs = visit(scenario, tmp_path)
    assert [line["tenant"] for line in logs if line["event"] == "request"][:8] == list(KEYS)
    for secret in ("bs-", "secret prompt", "hush-user", digest(GOOD.encode())[:8]):
        assert secret not in str(logs)


# Over


def test_a_model_that_the_key_does_not_allow_does_not_exist(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        for key in ("bs-elsewhere", "bs-nowhere"):
            refused = await site.ask(key)
            assert refused.outline == (404, "invalid_request_error", "model_not_found", "model")
            unknown = await site.ask(key, model="none")
            assert unknown.error["message"] == refused.error["message"].replace("fake", "none")
            assert (await site.get("/v1/models/fake", key)).status == 404
            assert json.loads((await site.get("/v1/models", key)).body)["data"] == []
        assert [model["id"] for model in json.loads((await site.get("/v1/models", GOOD)).body)["data"]] == ["fake"]

    visit(scenario, tmp_path)


@pytest.mark.parametrize(
    ("key", "tier", "runs_in"),
    [
        (GOOD, "priority", "priority"),
        (GOOD, None, "default"),
        ("bs-modest", "priority", None),
        ("bs-modest", "scale", None),
        ("bs-modest", "fast", None),
        ("bs-modest", "default", "default"),
        ("bs-modest", "flex", "flex"),
        ("bs-bulk", "priority", None),
        ("bs-bulk", "default", None),
        ("bs-bulk", "auto", "flex"),
        ("bs-bulk", None, "flex"),
        ("bs-bulk", "flex", "flex"),
    ],
)
def test_a_class_above_the_keys_is_refused_and_none_is_the_highest_allowed(
    tmp_path: Path, key: str, tier: str | None, runs_in: str | None
) -> None:
    async def scenario(site: Site) -> None:
        answer = await site.ask(key, service_tier=tier)
        if runs_in is None:
            assert answer.outline == (403, "invalid_request_error", "insufficient_permissions", "service_tier")
        else:
            assert answer.status == 200
            assert json.loads(answer.body)["service_tier"] == runs_in

    visit(scenario, tmp_path)


def levels(answer: Answer, unit: str) -> list[str]:
    return [answer.headers[f"x-ratelimit-{figure}-{unit}"] for figure in ("limit", "remaining")]


def assert_come_back(answer: Answer, unit: str) -> None:
    """A 429 of OpenAI's kind that says when."""
    assert answer.outline == (429, unit, "rate_limit_exceeded", None)
    seconds, ms = int(answer.headers["Retry-After"]), int(answer.headers["retry-after-ms"])
    assert 0 < ms <= 61_000
    assert seconds == -(-ms // 1000)


def test_too_many_requests(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        first, second = await site.ask("bs-seldom", at=0), await site.ask("bs-seldom", at=1, stream=True)
        assert [levels(each, "requests") for each in (first, second)] == [["2", "1"], ["2", "0"]]
        assert re.fullmatch(r"1m[01](\.\d+)?s", first.headers["x-ratelimit-reset-requests"])
        assert "x-ratelimit-limit-tokens" not in first.headers
        for at in (0, 1):
            refused = await site.ask("bs-seldom", at, stream=True, user=f"somebody else {at}")
            assert_come_back(refused, "requests")
            assert levels(refused, "requests") == ["2", "0"]
        assert (await site.ask(GOOD)).status == 200

    visit(scenario, tmp_path)


def test_a_request_with_a_fault_is_not_counted(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        for fields in ({"model": "none"}, {"prompt": ""}, {"max_tokens": 10**6}, {"service_tier": "gold"}):
            assert (await site.ask("bs-seldom", **fields)).status in (400, 404)
        assert [(await site.ask("bs-seldom")).status for _ in range(3)] == [200, 200, 429]

    visit(scenario, tmp_path)


def test_too_many_tokens(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        first = await site.ask("bs-short", prompt="x" * 20, max_tokens=30)
        assert levels(first, "tokens") == ["100", "50"]
        await site.settled()
        refused = await site.ask("bs-short", at=1, prompt="x" * 30, max_tokens=21)
        assert_come_back(refused, "tokens")
        assert levels(refused, "tokens") == ["100", "50"]
        refused = await site.ask("bs-short", at=1, prompt=["x" * 5] * 2, n=3, max_tokens=7)
        assert_come_back(refused, "tokens")
        assert (await site.ask("bs-short", prompt="x" * 20, max_tokens=30)).status == 200
        assert_come_back(await site.ask("bs-short", prompt="x", max_tokens=1), "tokens")

    visit(scenario, tmp_path)


def test_a_prompt_above_the_whole_quota_is_not_worth_another_try(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        refused = await site.ask("bs-short", prompt="x" * 101)
        assert refused.outline == (429, "tokens", "rate_limit_exceeded", None)
        assert refused.headers["x-should-retry"] == "false"
        assert "Retry-After" not in refused.headers

    visit(scenario, tmp_path)


def test_an_answer_that_may_be_long_reserves_no_more_than_there_is(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        answer = await site.ask("bs-short", prompt="x" * 10, max_tokens=150)
        assert answer.status == 200
        assert levels(answer, "tokens") == ["100", "0"]

    visit(scenario, tmp_path)


def test_too_many_streams(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with site.streaming("bs-single", at=0):
            for at in (0, 1):
                refused = await site.ask("bs-single", at)
                assert_come_back(refused, "requests")
                assert "1 requests at a time" in refused.error["message"]
            assert (await site.ask(GOOD)).status == 200
        await site.settled()
        assert (await site.ask("bs-single", at=1)).status == 200

    visit(scenario, tmp_path)


@pytest.mark.parametrize(("key", "granted"), [("bs-seldom", 2), ("bs-short", 2), ("bs-single", 1)])
def test_a_race_over_two_gateways_passes_no_bound(tmp_path: Path, key: str, granted: int) -> None:
    async def scenario(site: Site) -> None:
        asked = (site.ask(key, at % 2, prompt="x" * 10, max_tokens=40) for at in range(24))
        answers = await asyncio.gather(*asked)
        statuses = [answer.status for answer in answers]
        assert sorted(set(statuses)) == [200, 429]
        assert statuses.count(200) == granted

    visit(scenario, tmp_path)


def test_a_quota_that_cannot_be_checked_lets_nobody_in(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        for _ in range(3):
            answer = await site.ask("bs-seldom")
            assert answer.outline == (503, "service_unavailable_error", "service_unavailable", None)
            assert int(answer.headers["Retry-After"]) >= 1
        assert (await site.ask(GOOD)).status == 200, "it has none"
        await site.settled()
        mine = await MemoryTenants.reserve(site.tenants, "seldom", "x", 0, Quota(2), 1.0)
        assert mine.allowance.requests and mine.allowance.requests.remaining == 1, "what was taken is back"

    visit(scenario, tmp_path, LostTenants)


# Across


def test_who_asks_is_the_keys_name_whatever_a_client_says(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        for user in ("", "good", "modest", "x" * 512):
            await site.ask("bs-modest", user=user, x_tenant="good", x_llm_d_inference_fairness_id="good")
        assert site.stores[0].tenants == ["modest"] * 4

    visit(scenario, tmp_path)


def test_another_tenants_request_id_opens_nothing(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        first = await site.ask(GOOD, x_request_id="same", prompt="abc", seed=1)
        second = await site.ask("bs-modest", x_request_id="same", prompt="xyz", seed=1)
        assert json.loads(first.body)["id"] != json.loads(second.body)["id"]
        assert json.loads(first.body)["choices"] != json.loads(second.body)["choices"]
        answer = await site.ask("bs-modest", x_request_id=json.loads(first.body)["id"].removeprefix("cmpl-"))
        assert json.loads(answer.body)["id"] != json.loads(first.body)["id"]

    visit(scenario, tmp_path)


@pytest.mark.parametrize("thief", ["bs-modest", "bs-nowhere", "bs-wrong"])
def test_another_tenants_stream_cannot_be_read_on(tmp_path: Path, thief: str) -> None:
    """Whoever knows its id gets what there is at an id that nobody has, and its reader is not disturbed."""
    unknown = "0" * 32

    async def scenario(site: Site) -> None:
        async with site.streaming(GOOD) as call_id:
            attempts: list[Callable[[str], Awaitable[Answer]]] = [
                lambda call: site.get(f"/v1/streams/{call}", thief),
                lambda call: site.get(f"/v1/streams/cmpl-{call}", thief),
                lambda call: site.get(f"/v1/streams/{call}", thief, last_event_id=f"{call}:1.1"),
                lambda call: site.ask(thief, last_event_id=f"{call}:1.1"),
                lambda call: site.ask(thief, last_event_id=f"{call}:1.1", user="good", x_tenant="good"),
            ]
            for attempt in attempts:
                refused = await attempt(call_id)
                assert refused.status == (401 if thief == "bs-wrong" else 404)
                assert refused.error == (await attempt(unknown)).error
            metrics = (await site.get("/metrics", "")).body.decode()
            assert "\nbucketserve_resumed_calls_total{" not in metrics
            assert "\nbucketserve_streams 1.0\n" in metrics

    visit(scenario, tmp_path)
