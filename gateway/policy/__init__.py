"""Decisions, as functions of values: `now`, load and randomness are arguments.

`admission` (may it come in), `length` (how long will the answer be; from `features`, `history` and a trained
`snapshot`), `priority` (which class, how urgent), `bucket` (which lengths go together), `batch` (how many fit).
The live driver and the simulator use the same functions.

What a request will take (UELLM's resource profile) follows from its lengths: peak memory in `batch.row_of`,
prefill and decode seconds in `gateway.fleet`.
"""
