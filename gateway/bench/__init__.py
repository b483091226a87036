"""`bucketserve bench`: an open-loop load on any OpenAI server over HTTP, measured from outside.

Arrivals never wait for answers, as people do not either.  `options` and `demand` (what was asked for), `prompts`,
`wire` (what a server streams), `client` (one request), `load` (all of them, on time), `run` (rate after rate),
`tables` and `folder` (what is shown and kept), `command`.  Workloads, records and reports are `gateway.load`'s.
"""
