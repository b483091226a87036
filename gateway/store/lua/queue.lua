-- All that a driver's choice needs, and of a short queue the tickets.
-- ARGV: how many tickets at most.
-- Returns now_s, heads (set, "count score id", ...), served (class, figure, ...), "version bound ..." or nil,
-- the sums of tickets, tokens, bytes (each may be nil), and {id, attempt, score, meta} of each ticket, best score
-- first, if there are no more than that.

local heads = redis.call('HGETALL', HEADS)
local limit, count, sets = tonumber(ARGV[1]), 0, {}
for i = 1, #heads, 2 do
  sets[#sets + 1] = heads[i]
  count = count + (tonumber(heads[i + 1]:match('^%d+')) or 0)
  if count > limit then break end
end

return {
  exact(clock_us() / 1e6),
  heads,
  redis.call('HGETALL', SERVED),
  redis.call('GET', BUCKETS),
  redis.call('HMGET', SUMS, 'tickets', 'tokens', 'bytes'),
  count <= limit and best(sets, limit) or {},
}
