-- The learned model, if it is newer than the caller's.
-- ARGV: the caller's version.
-- Returns {version, model}, or nil.

local last = tonumber(redis.call('HGET', SNAPSHOT, 'version') or 0) or 0
if last <= tonumber(ARGV[1]) then return false end
return {integer(last), redis.call('HGET', SNAPSHOT, 'data')}
