-- Who drives what.
-- Returns replica, gateway, ... of each live lease.

local live, now_us = {}, clock_us()
for _, replica in ipairs(redis.call('HKEYS', DRIVERS)) do
  local _, expiry_us, gateway = driver(replica)
  if expiry_us > now_us then
    live[#live + 1] = replica
    live[#live + 1] = gateway
  end
end
return live
