-- Remove an API key's record.
-- KEYS: see RecordKeys in keys.py.
-- ARGV: name.
-- Returns 1, or 0 if there is none.

if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('INCR', KEYS[2])
return 1
