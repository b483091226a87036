-- Replace the bucket table if its version is still the given one.
-- ARGV: version, bounds separated by spaces.
-- Returns 1, or 0 if the version has moved on.

local stored = redis.call('GET', BUCKETS)
local version = stored and stored:match('^%d+') or '0'
if version ~= ARGV[1] then return 0 end

redis.call('SET', BUCKETS, integer(version + 1) .. ' ' .. ARGV[2])
return 1
