-- These reservations are still streams.
-- ARGV: ttl_s, then ids.
-- Returns OK.

forget_dead()
for at = 2, #ARGV do prolong(ARGV[at], ARGV[1]) end
return redis.status_reply('OK')
