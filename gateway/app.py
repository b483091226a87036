"""One gateway, put together: each resource is opened once and closed in reverse order."""

import asyncio
import contextlib
import gc
import ipaddress
import secrets
import signal
from collections.abc import Coroutine
from typing import Any

import jinja2
import structlog
import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry

from gateway import chooser, listening, logs, recorder, server, triton
from gateway import driver as driving
from gateway import origin as origins
from gateway.driver import Driver
from gateway.errors import Failed, in_one_line
from gateway.fleet import Fleet
from gateway.keyring import Keyring
from gateway.metrics import Metrics
from gateway.origin import Origin
from gateway.policy import preset
from gateway.ports import Limits, Store, Tenants
from gateway.profiler import Profiler
from gateway.reservations import Reservations
from gateway.settings import Settings, model_name
from gateway.store import home
from gateway.store.home import Home
from gateway.store.redis import RedisStore
from gateway.store.redis_tenants import RedisTenants
from gateway.switchboard import Switchboard
from gateway.ticketing import Aim
from gateway.tokenizer import HFTokenizer

log = structlog.get_logger()

_DISCOVERY_S = 1.0
_LAG_S = 0.1
_CUT_S = 2.0
"""For the store to hear of streams that were cut."""
_YOUNG_OBJECTS = 10_000
"""That the collector lets come before it looks for rubbish."""


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit status.  Raises Failed."""
    logs.configure(settings.log.level, settings.log.format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings))
    return 0


class Gateway:
    """The parts of one gateway, and what runs between them."""

    def __init__(
        self, settings: Settings, store: Store, tenants: Tenants, tokenizer: HFTokenizer, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._name = f"gateway-{secrets.token_hex(6)}"
        self._store = store
        self._metrics = metrics
        self._fleet = Fleet(settings.scheduling.safety_factor)
        self._switchboard = Switchboard(self._name, store, self._fleet, metrics)
        self._profiler = Profiler(self._name, store)
        self._policy = preset.named(settings.policy, settings.scheduling.bulk_order)
        queue, classes = settings.queue, settings.classes.targets()
        self._shares = {name: class_.share for name, class_ in classes.items()}
        self.origin = Origin(
            gateway=self._name,
            model=model_name(settings),
            store=store,
            tokenizer=tokenizer,
            fleet=self._fleet,
            profiler=self._profiler,
            reservations=Reservations(tenants),
            config=origins.Config(
                limits=Limits(queue.max_tickets, queue.max_tokens, int(queue.max_bytes)),
                policy=self._policy,
                aims={name: Aim(class_.ttft_s, class_.tpot_s) for name, class_ in classes.items()},
                shares=self._shares,
                audit_s=settings.origin.audit_s,
                progress_timeout_s=settings.origin.progress_timeout_s,
                resume=recorder.Config(
                    recorder.Mode(settings.resume.mode), settings.resume.ttl_s, settings.resume.max_bytes
                ),
            ),
            metrics=metrics,
            start=self._switchboard.start,
            wake=self._switchboard.wake,
            cancel=self._switchboard.cancel,
            recall=self._switchboard.recall,
        )
        self._switchboard.origin = self.origin

    async def run(self) -> None:
        """Serve the queue for ever; ends only by cancellation or a bug."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.origin.run())
            group.create_task(self._switchboard.run())
            group.create_task(self._profiler.run())
            for address in self._settings.triton:
                group.create_task(self._drive(address))

    def leave(self) -> None:
        """Take nothing new in, and let other gateways drive."""
        self.origin.is_draining = True
        self._switchboard.board.is_leaving = True

    async def _drive(self, address: str) -> None:
        """Drive every replica of one Triton, once it answers."""
        while not (models := await triton.replicas(address)):
            await asyncio.sleep(_DISCOVERY_S)
        async with asyncio.TaskGroup() as group:
            for model in models:
                driver = self._driver(triton.TritonBackend(address, model))
                self._switchboard.drivers.append(driver)
                group.create_task(driver.run())

    def _driver(self, backend: triton.TritonBackend) -> Driver:
        settings = self._settings
        return Driver(
            gateway=self._name,
            backend=backend,
            store=self._store,
            fleet=self._fleet,
            receiver=self._switchboard.receiver,
            may_drive=self._switchboard.board.may_drive,
            metrics=self._metrics,
            config=driving.Config(
                lease_s=settings.driver.lease_s,
                renew_s=settings.driver.renew_s,
                choice=chooser.Config(
                    policy=self._policy,
                    max_rows=settings.scheduling.max_rows,
                    max_batch_rows=settings.scheduling.max_batch_rows,
                    max_prefill_tokens=settings.scheduling.max_prefill_tokens,
                    shares=self._shares,
                ),
            ),
        )


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then let streams finish for at most `http.grace_s`; the others are cut, to be
    gone on with elsewhere.  Raises Failed."""
    metrics = Metrics(CollectorRegistry(), model_name(settings))
    tokenizer = _tokenizer(settings.model)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(tokenizer.close)
        store = _store(settings, metrics)
        stack.push_async_callback(store.aclose)
        tenants = _tenants(settings, metrics)
        stack.push_async_callback(tenants.aclose)
        keyring = _keyring(settings, tenants)
        await keyring.refresh()
        gateway = Gateway(settings, store, tenants, tokenizer, metrics)
        runner = server.make_runner(_web_app(settings, gateway, keyring, tokenizer, metrics))
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        sites = [web.TCPSite(runner, settings.host, settings.port, reuse_port=settings.own_port is not None)]
        if settings.own_port is not None:
            sites.append(web.TCPSite(runner, settings.host, settings.own_port))
        running = asyncio.create_task(_run_all(gateway.run(), keyring.run(), _measure_lag(metrics)))
        stack.push_async_callback(_cancel, running)
        for site in sites:
            with listening.told(settings.host, site.port):
                await site.start()
        if keyring.is_open and not _is_loopback(settings.host):
            log.warning("gateway.open", host=settings.host, reason="no API key is configured: anybody may ask")
        # What is there before the first request stays; to look through it again and again would hold everybody up
        # for tenths of a second.
        gc.collect()
        gc.freeze()
        # A step's tokens are some thousand objects, and all go without it.
        gc.set_threshold(_YOUNG_OBJECTS)
        log.info("gateway.listening", host=settings.host, port=settings.port, model=model_name(settings))
        await _first(running, asyncio.create_task(_stop_signal()))
        gateway.leave()
        for site in sites:
            await site.stop()
        await _drain(gateway, settings.http.grace_s)


def _tokenizer(model: str) -> HFTokenizer:
    try:
        return HFTokenizer.load(model)
    except (OSError, ValueError) as error:
        raise Failed(f"no tokenizer in {model}: {in_one_line(error)}; --model wants a tokenizer.json") from None
    except jinja2.TemplateSyntaxError as error:
        raise Failed(f"line {error.lineno} of the chat template in {model} is no Jinja: {error.message}") from None


def _store(settings: Settings, metrics: Metrics) -> RedisStore:
    return RedisStore(
        _home(settings),
        model_name(settings),
        timeout_s=settings.store.timeout_s,
        observe=metrics.store_verb,
        changed=metrics.store_lost,
    )


def _tenants(settings: Settings, metrics: Metrics) -> RedisTenants:
    return RedisTenants(_home(settings), timeout_s=settings.store.timeout_s, observe=metrics.store_verb)


def _home(settings: Settings) -> Home:
    assert settings.redis is not None, "the command line asks for it"
    url = settings.redis.get_secret_value()
    return home.connect(url, connect_timeout_s=settings.store.connect_timeout_s)


def _keyring(settings: Settings, tenants: Tenants) -> Keyring:
    """Raises BadKeys."""
    plain = [key.get_secret_value() for key in settings.api_keys]
    return Keyring(plain, settings.keys_file, tenants if settings.redis_keys else None)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _web_app(
    settings: Settings, gateway: Gateway, keyring: Keyring, tokenizer: HFTokenizer, metrics: Metrics
) -> web.Application:
    return server.make_app(
        gateway.origin,
        tokenizer,
        metrics,
        keyring=keyring,
        max_body_bytes=settings.http.max_body_bytes,
        body_timeout_s=settings.http.body_timeout_s,
        keepalive_s=settings.http.keepalive_s,
        slow_client_s=settings.http.slow_client_s,
    )


async def _run_all(*works: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(work)


async def _measure_lag(metrics: Metrics) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + _LAG_S
        await asyncio.sleep(_LAG_S)
        metrics.loop_lag(max(0.0, loop.time() - due_s))


async def _stop_signal() -> None:
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await told.wait()


async def _first(running: asyncio.Task[None], stopping: asyncio.Task[None]) -> None:
    """Returns when told to stop; raises what broke `running`."""
    done, _ = await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if running in done:
        running.result()


async def _drain(gateway: Gateway, grace_s: float) -> None:
    try:
        async with asyncio.timeout(grace_s):
            await gateway.origin.idle()
    except TimeoutError:
        gateway.origin.cut()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CUT_S):
                await gateway.origin.idle()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
