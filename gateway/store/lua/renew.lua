-- Prolong a replica's lease, and tell how it stands.  One that ran out while the store stood still is taken up
-- again, unless somebody else was elected.
-- ARGV: replica, epoch, lease_s, standing.
-- Returns 1, or 0 if the lease is lost.

local replica, epoch = ARGV[1], ARGV[2]
local last, _, gateway = driver(replica)
if last ~= epoch or not gateway then return 0 end

set_driver(replica, epoch, clock_us() + ARGV[3] * 1e6, gateway)
redis.call('HSET', STANDINGS, replica, ARGV[4])
return 1
