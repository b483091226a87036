-- Become a replica's driver.
-- ARGV: replica, gateway, lease_s.
-- Returns the new epoch as a string, or nil while another gateway holds the lease.

local replica, gateway = ARGV[1], ARGV[2]
local now_us = clock_us()
local last, expiry_us, holder = driver(replica)
if expiry_us > now_us and holder ~= gateway then return false end

-- A replica gone for a day needs no memory of its epochs: the clock has passed them.
for _, other in ipairs(redis.call('HKEYS', DRIVERS)) do
  local _, other_expiry_us = driver(other)
  if other_expiry_us < now_us - 86400e6 then
    redis.call('HDEL', DRIVERS, other)
    redis.call('HDEL', STANDINGS, other)
  end
end

local epoch = integer(math.max((last or 0) + 1, now_us))
set_driver(replica, epoch, now_us + ARGV[3] * 1e6, gateway)
return epoch
