-- Give a replica's lease up, if it is still this epoch's; the epoch stays on record.
-- ARGV: replica, epoch.
-- Returns OK.

local replica, epoch = ARGV[1], ARGV[2]
local last, expiry_us = driver(replica)
if last == epoch then set_driver(replica, epoch, math.min(expiry_us, clock_us())) end
return redis.status_reply('OK')
