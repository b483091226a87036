-- The API keys' records, if they have changed.
-- KEYS: see RecordKeys in keys.py.
-- ARGV: the version already known.
-- Returns the version and the records (name, record, ...), or nil if it is that one.

local version = redis.call('GET', KEYS[2]) or '0'
if version == ARGV[1] then return false end
return {version, redis.call('HGETALL', KEYS[1])}
