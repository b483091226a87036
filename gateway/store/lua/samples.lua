-- Read finished requests in the order of their arrival.
-- ARGV: the id after which to begin (empty: at the oldest), limit.
-- Returns {id, {'sample', sample}} each.

local start = ARGV[1] == '' and '-' or '(' .. ARGV[1]
return redis.call('XRANGE', SAMPLES, start, '+', 'COUNT', ARGV[2])
