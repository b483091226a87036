"""Which calls can be gone on with over another connection, and how: those that are here are taken over, others
adopted from their record."""

from collections.abc import Callable

import msgspec
import structlog

from gateway import recipe as recipes
from gateway.adoption import Adoption
from gateway.call import OpenCall
from gateway.errors import Interrupted, NotFound, StoreLost, Unavailable
from gateway.metrics import Metrics
from gateway.outbox import Recall
from gateway.ports import Store, Tokenizer
from gateway.profiler import Profiler
from gateway.recorder import Config, Mode, Recorder, Recording
from gateway.request import Ticket

log = structlog.get_logger()


class Resumption:
    def __init__(
        self,
        gateway: str,
        store: Store,
        tokenizer: Tokenizer,
        profiler: Profiler,
        config: Config,
        metrics: Metrics,
        recall: Recall,
        close: Callable[[OpenCall], None],
    ) -> None:
        """`recall` is Outbox's; `close` ends a call here that another gateway has adopted."""
        self.recorder = Recorder(store, config, metrics, self._fenced)
        self._adoption = Adoption(gateway, tokenizer, profiler, self.recorder)
        self._store = store
        self._config = config
        self._metrics = metrics
        self._recall = recall
        self._close = close
        self._calls: dict[str, OpenCall] = {}
        """Those that are recorded: read, or running on without a reader."""

    def begin(self, call: OpenCall) -> None:
        """Record what comes, if it is worth it: an answer in one piece can be asked for again."""
        if self._config.mode is Mode.OFF or not call.request.stream:
            return
        call.record(Recording(self.recorder, call.id, call.request.tenant.name, call.arrival_s))
        self._open(call)

    def keep(self, call: OpenCall, tickets: list[Ticket]) -> None:
        """It was queued as these."""
        if call.recording is not None and call.recipe is not None:
            content = recipes.encode(msgspec.structs.replace(call.recipe, tickets=tickets))
            self.recorder.keep(call.recording, content)

    def forget(self, call: OpenCall) -> None:
        """It was never queued."""
        if self._leave(call) and call.recording is not None:
            self.recorder.forget(call.recording)

    def end(self, call: OpenCall) -> None:
        """Nobody reads or runs the call here any more; from now on its record has its time to live."""
        if self._leave(call) and call.recording is not None:
            self.recorder.end(call.recording)

    def _open(self, call: OpenCall) -> None:
        self._calls[call.id] = call
        if call.recording is not None:
            self.recorder.begin(call.recording)

    def _leave(self, call: OpenCall) -> bool:
        if self._calls.get(call.id) is not call:
            return False
        del self._calls[call.id]
        return True

    async def take_over(self, call_id: str, owner: str) -> OpenCall | None:
        """A call that is here, from its beginning; whoever read it is interrupted.  None if it is not here, or not
        any more.  Raises NotFound if it is another owner's, or cannot go on."""
        if (found := self._calls.get(call_id)) is None or (recording := found.recording) is None:
            return None
        if found.recipe is None or not recording.content:
            return None
        if recording.owner != owner:
            raise _unknown()
        replay = self._adoption.replay(found.recipe)
        await replay.catch_up(recording.log)
        before = self._calls.get(call_id)
        if before is None or before.recording is not recording:
            return None
        if recording.is_closed:
            raise _unknown()
        call = OpenCall(call_id, before.request, before.arrival_s, before.prompt_tokens, before.prompt_texts)
        call.succeed(before)
        call.replay(replay.deltas)
        self._calls[call_id] = call
        self._metrics.call_resumed("taken over")
        return call

    async def adopt(self, call_id: str, owner: str) -> OpenCall:
        """A call that was another gateway's, or nobody's any more, from its beginning; `go_on` follows, once it is
        let in.  Raises NotFound if its owner has none such that can go on, and Unavailable."""
        try:
            adopted = await self._store.adopt(call_id, owner, self._config.ttl_s)
            call = adopted and await self._adoption.call(call_id, owner, adopted)
            if not adopted or not call:
                raise _unknown()
            last = adopted.epoch - 1
            leased = await self._store.cancel([(live.ticket.id, last) for live in call.live.values()])
        except StoreLost as lost:
            raise Unavailable("The records of streams do not answer.", retry_after_s=1.0) from lost
        self._recall((ticket, last, replica) for ticket, replica in leased)
        return call

    def go_on(self, call: OpenCall) -> None:
        """An adopted call is read and run here.  Only from now on can it be taken over: before, another connection
        would get what may yet be refused.  Raises Interrupted if one was as quick, and adopted it again."""
        before = self._calls.get(call.id)
        if before is not None and before.recording is not None and call.recording is not None:
            if before.recording.epoch > call.recording.epoch:
                raise Interrupted(_ELSEWHERE, retry_after_s=1.0)
            self._fenced(before.recording)
        self._open(call)
        self._metrics.call_resumed("adopted")

    def _fenced(self, recording: Recording) -> None:
        call = self._calls.get(recording.call_id)
        if call is not None and call.recording is recording:
            log.info("call.adopted_elsewhere", call=call.id)
            self.forget(call)
            call.fail(Interrupted(_ELSEWHERE, retry_after_s=1.0))
            self._close(call)


_ELSEWHERE = "The stream goes on over another connection."


def _unknown() -> NotFound:
    return NotFound("There is no such stream, or it has expired.", code="stream_not_found")
