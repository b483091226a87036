-- What of an origin's live tickets the store does not know; also the origin's sign of life.
-- ARGV: gateway, lease_s, then (id, attempt) each.
-- Returns ids.

redis.call('ZREM', ORIGINS, ARGV[1])
redis.call('ZADD', ORIGINS, exact(clock_us() / 1e6 + ARGV[2]), ARGV[1])

local unknown = {}
for at = 3, #ARGV, 2 do
  if field(ARGV[at], 'attempt') ~= ARGV[at + 1] then unknown[#unknown + 1] = ARGV[at] end
end
return unknown
