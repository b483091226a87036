-- Forget tickets of origins that count as dead, and those origins once they have none.
-- ARGV: limit.
-- Returns {id, replica} of each that was leased.

local left, leased = tonumber(ARGV[1]), {}

for _, gateway in ipairs(redis.call('ZRANGEBYSCORE', ORIGINS, '-inf', exact(clock_us() / 1e6), 'LIMIT', 0, left)) do
  if left == 0 then break end
  local key = ORIGIN .. ':' .. gateway
  local ids = redis.call('SPOP', key, left)
  left = left - #ids
  for _, id in ipairs(ids) do
    local ticket = read(id)
    if ticket then withdraw(ticket, leased) end
  end
  if redis.call('EXISTS', key) == 0 then redis.call('ZREM', ORIGINS, gateway) end
end

settle()
return leased
