-- Prolong a replica's lease, and tell how it stands.
-- ARGV: replica, epoch, lease_s, standing.
-- Returns 1, or 0 if the lease is lost.

local replica, epoch = ARGV[1], ARGV[2]
if not holds(replica, epoch) then return 0 end

local _, _, gateway = driver(replica)
set_driver(replica, epoch, clock_us() + ARGV[3] * 1e6, gateway)
redis.call('HSET', STANDINGS, replica, ARGV[4])
return 1
