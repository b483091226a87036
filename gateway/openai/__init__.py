"""OpenAI's wire format, pure: `parse` makes a Request of a body, `answer` chunks or a completion of deltas.

What we accept beyond OpenAI are the usual extensions of engines (`top_k`, `min_tokens`, `ignore_eos`,
`stop_token_ids`, `continuous_usage_stats`).  A field that would change the output and that we do not
implement is refused by name; any other unknown field is ignored.  `null` means the default.
"""
