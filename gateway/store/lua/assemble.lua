-- Be seen among the gateways, or no more, and see who is there.
-- ARGV: gateway, drives (1 or 0), card, life_s (0: no more).
-- Returns {gateway, drives, card, ...} and {replica, gateway, standing, ...} of each live lease.

local now_us = clock_us()
redis.call('HDEL', GATEWAYS, ARGV[1])
if tonumber(ARGV[4]) > 0 then
  local expiry_us = integer(now_us + ARGV[4] * 1e6)
  redis.call('HSET', GATEWAYS, ARGV[1], expiry_us .. ' ' .. ARGV[2] .. ' ' .. ARGV[3])
end

local gateways, all = {}, redis.call('HGETALL', GATEWAYS)
for at = 1, #all, 2 do
  local expiry_us, drives, card = all[at + 1]:match('^(%d+) ([01]) (.*)$')
  if tonumber(expiry_us or 0) > now_us then
    gateways[#gateways + 1] = all[at]
    gateways[#gateways + 1] = drives
    gateways[#gateways + 1] = card
  else
    redis.call('HDEL', GATEWAYS, all[at])
  end
end

local seats = {}
for _, replica in ipairs(redis.call('HKEYS', DRIVERS)) do
  local _, expiry_us, gateway = driver(replica)
  if expiry_us > now_us then
    seats[#seats + 1] = replica
    seats[#seats + 1] = gateway
    seats[#seats + 1] = redis.call('HGET', STANDINGS, replica) or ''
  end
end
return {gateways, seats}
