"""What a driver knows of its rows when another has driven in between."""

from gateway.request import Departed, Drawn, Profile, Ticket
from gateway.roster import Roster
from triton_backend.contract import LiveRow


def ticket(id: str, attempt: int = 0) -> Ticket:
    return Ticket(
        id=id,
        attempt=attempt,
        origin=f"origin of {id}",
        prompt_tokens=3,
        index=0,
        max_tokens=8,
        profile=Profile(8, 8),
        tpot_s=1.0,
        bin=0,
        slack_s=1.0,
        cost_s=0.0,
        seconds=0.0,
        size_bytes=10,
    )


def live_row(number: int, id: str, tokens: list[int]) -> LiveRow:
    return LiveRow(number, id, 0, f"origin of {id}", 3, 0, 8 - len(tokens), tokens, [], [], None)


def test_another_driver_gave_a_rows_number_to_another_ticket() -> None:
    roster = Roster()
    number = roster.add(ticket("ended meanwhile"))
    mails = roster.adopt([live_row(number, "came meanwhile", [7])])
    assert mails["origin of ended meanwhile"].departed == [Departed("ended meanwhile", 0, None, "")]
    assert mails["origin of came meanwhile"].drawn == [Drawn("came meanwhile", 0, 0, 7, None)]
    assert roster.tickets == [("came meanwhile", 0)]


def test_rows_that_are_still_there_keep_what_is_known_of_them() -> None:
    roster = Roster()
    known = ticket("known")
    number = roster.add(known)
    roster.adopt([live_row(number, "known", [7, 8])])
    running = roster.find("known")
    assert running is not None and running.ticket is known and running.drawn == 2
