"""Predicts the answers' lengths, and shares what is learned with the other gateways.

Finished requests go to one capped stream as numbers, never text; the gateway that holds a lease trains on it every
few seconds and publishes a model that all take.  A store that is down costs nothing but staleness.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

import msgspec
import structlog

from gateway.errors import StoreLost
from gateway.policy.features import Features
from gateway.policy.history import Sample, Seen
from gateway.policy.length import Mode, Predictor
from gateway.policy.snapshot import MAX_TOKENS, BadSnapshot, Snapshot
from gateway.ports import MAX_SAMPLES, NO_REPLICA, Store
from gateway.request import Profile, ServiceClass
from gateway.training import train

log = structlog.get_logger()

EXCHANGE_S = 1.0
TRAIN_S = 5.0
"""Pause between trainings, each of which takes a fraction of a second of one core."""
MIN_SAMPLES = 256
MIN_NEW = 64
"""Fewer new answers change the model little."""
MAX_PENDING = 256
"""Answers handed over at a time; of more, the latest."""
_LEASE = f"{NO_REPLICA}profiler"
"""No replica's name: Triton's models have none with a colon."""
_LEASE_S = 10.0
_PAGE = 512
_WARM_UP = 512
"""Samples that a gateway begins with."""

Trainer = Callable[[Sequence[Sample]], Awaitable[Snapshot | None]]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Sample).decode


async def train_in_thread(samples: Sequence[Sample]) -> Snapshot | None:
    return await asyncio.to_thread(train, samples)


class Profiler:
    """One gateway's predictor, and its part in the common learning."""

    def __init__(self, gateway: str, store: Store, trainer: Trainer = train_in_thread) -> None:
        self._gateway = gateway
        self._store = store
        self._trainer = trainer
        self._predictor = Predictor()
        self._pending: deque[Sample] = deque(maxlen=MAX_PENDING)
        self._is_warm = False
        """It has remembered what the stream held when it came."""
        self._version = 0
        """Of the model in use."""
        self._window: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        """What the trainer has read, up to `_read_id`; empty while another gateway is the trainer."""
        self._read_id = ""
        self._num_new = 0
        self._trained_s = -TRAIN_S

    @property
    def mode(self) -> Mode:
        return self._predictor.mode

    def features(
        self, prompt: Sequence[int], max_tokens: int, service_class: ServiceClass, tenant: str
    ) -> Features:
        """Taken when the request comes in, for `predict` and for `observe`."""
        return self._predictor.features(prompt, max_tokens, service_class, tenant)

    def predict(self, features: Features, max_tokens: int, ignore_eos: bool) -> Profile:
        """Expected and upper length of an answer of at most `max_tokens`, in tokens."""
        return self._predictor.predict(features, max_tokens, ignore_eos)

    def observe(self, features: Features, max_tokens: int, tokens: int, ended_by_limit: bool) -> None:
        """An answer has ended, by itself or at its limit.  Not to be told of those made to ignore their end."""
        tokens = min(max(tokens, 1), MAX_TOKENS)
        self._predictor.observe(features, max_tokens, tokens, ended_by_limit)
        self._pending.append(Sample(features, Seen(tokens, ended_by_limit)))

    async def run(self) -> NoReturn:
        """Share and learn, for ever."""
        while True:
            with contextlib.suppress(StoreLost):
                await self.exchange()
            await asyncio.sleep(EXCHANGE_S)

    async def exchange(self) -> None:
        """Hand over what ended here, take the newest model, and train if it is this gateway's turn.

        Raises StoreLost; what was to be handed over may then be lost.
        """
        await self._warm_up()
        await self._hand_over()
        await self._take_newest()
        if await self._store.elect(_LEASE, self._gateway, _LEASE_S) is None:
            self._forget_window()
        else:
            await self._train_on_news()

    async def _warm_up(self) -> None:
        """Once: begin with what others have seen."""
        if not self._is_warm:
            await self._read_news()
            for sample in list(self._window)[-_WARM_UP:]:
                self._predictor.remember(sample)
            self._is_warm = True

    async def _hand_over(self) -> None:
        samples = [_encode(sample) for sample in self._pending]
        self._pending.clear()
        if samples:
            await self._store.append_samples(samples)

    async def _take_newest(self) -> None:
        if found := await self._store.snapshot(self._version):
            version, data = found
            # One that does not decode is not asked for again.
            self._version = version
            try:
                self._predictor.adopt(Snapshot.decode(data))
            except BadSnapshot as bad:
                log.error("profiler.bad_snapshot", version=version, detail=str(bad))

    async def _train_on_news(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._trained_s < TRAIN_S:
            return
        await self._read_news()
        if self._num_new < MIN_NEW or len(self._window) < MIN_SAMPLES:
            return
        self._trained_s, self._num_new = now_s, 0
        snapshot = await self._trainer(list(self._window))
        if snapshot is not None:
            is_newest = await self._store.publish(snapshot.encode(), self._version)
            log.info("profiler.trained", samples=len(self._window), published=is_newest)

    async def _read_news(self) -> None:
        """Bring the window up to date."""
        while page := await self._store.samples(self._read_id, _PAGE):
            self._read_id = page[-1][0]
            samples = [sample for _, data in page if (sample := _sample(data)) is not None]
            self._window.extend(samples)
            self._num_new += len(samples)

    def _forget_window(self) -> None:
        self._window.clear()
        self._read_id, self._num_new = "", 0


def _sample(data: bytes) -> Sample | None:
    """None for bytes of others that are no sample."""
    try:
        sample = _decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None
    return sample if sample.features.is_sound else None
