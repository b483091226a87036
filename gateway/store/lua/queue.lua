-- All that a driver's choice needs.
-- Returns now_s, heads (set, "count score id", ...), served (class, figure, ...), "version bound ..." or nil,
-- and the sums of tickets, tokens, bytes (each may be nil).

return {
  exact(clock_us() / 1e6),
  redis.call('HGETALL', HEADS),
  redis.call('HGETALL', SERVED),
  redis.call('GET', BUCKETS),
  redis.call('HMGET', SUMS, 'tickets', 'tokens', 'bytes'),
}
