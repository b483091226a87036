"""Where a client's stream broke off: what the `id` of the last event it saw says."""

import re
from typing import NamedTuple

from gateway.errors import BadRequest, NotFound

LAST_EVENT_ID = "Last-Event-ID"


class Position(NamedTuple):
    """What was sent of one choice."""

    tokens: int
    chars: int


_call = re.compile(r"(?:chatcmpl-|cmpl-)?([0-9a-f]{32})")
_event = re.compile(r"([0-9a-f]{32}):([0-9]{1,9}\.[0-9]{1,9}(?:/[0-9]{1,9}\.[0-9]{1,9}){0,127})")


def of_stream(given: str, event_id: str | None) -> tuple[str, list[Position] | None]:
    """The call and the positions, by choice, that a stream's address (the call's id, or the answer's) and the last
    event's id name; without the latter no positions: the beginning.  Raises NotFound, BadRequest."""
    if not (found := _call.fullmatch(given)):
        raise NotFound("There is no such stream, or it has expired.", code="stream_not_found")
    if event_id is None:
        return found[1], None
    call_id, sent = of_event(event_id)
    if call_id != found[1]:
        raise BadRequest(f"The header '{LAST_EVENT_ID}' is of another stream.", param=LAST_EVENT_ID)
    return call_id, sent


def of_event(event_id: str) -> tuple[str, list[Position]]:
    """Raises BadRequest."""
    if not (found := _event.fullmatch(event_id)):
        raise BadRequest(f"The header '{LAST_EVENT_ID}' is no event id of ours.", param=LAST_EVENT_ID)
    return found[1], [Position(*map(int, part.split("."))) for part in found[2].split("/")]
