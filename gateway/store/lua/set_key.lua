-- Add or replace an API key's record.
-- KEYS: see RecordKeys in keys.py.
-- ARGV: name, record.
-- Returns OK.

local time = redis.call('TIME')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
-- No version comes twice, not even after the server has lost the last.
local version = math.max((redis.call('GET', KEYS[2]) or 0) + 1, time[1] * 1000000 + time[2])
return redis.call('SET', KEYS[2], string.format('%.0f', version))
