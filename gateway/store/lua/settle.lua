-- End reservations: what they did not use comes back.
-- ARGV: (id, tokens used, or empty if it never ran) each.
-- Returns OK.

-- Only what the minute still counts can come back.
local function give_back(at, unit, amount)
  if amount > 0 and redis.call('HEXISTS', USED, at .. ':' .. unit) == 1 then use(at, unit, -amount) end
end

for i = 1, #ARGV, 2 do
  local id, tokens = ARGV[i], tonumber(ARGV[i + 1])
  local at, reserved = (redis.call('HGET', HELD, id) or ''):match('^(%d+) (%d+)$')
  redis.call('ZREM', STREAMS, id)
  if at then
    redis.call('HDEL', HELD, id)
    give_back(at, 'tokens', reserved - (tokens or 0))
    if not tokens then give_back(at, 'requests', 1) end
    if tokens and tokens > tonumber(reserved) then use(integer(second), 'tokens', tokens - reserved) end
  end
end
return redis.status_reply('OK')
