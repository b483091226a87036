-- Replace the learned model unless a newer one is there.
-- ARGV: the version up to which it may be replaced, the model.
-- Returns 1, or 0 if a newer one is there.

local last = tonumber(redis.call('HGET', SNAPSHOT, 'version') or 0) or 0
if last > tonumber(ARGV[1]) then return 0 end

redis.call('HSET', SNAPSHOT, 'version', integer(math.max(last + 1, clock_us())), 'data', ARGV[2])
return 1
