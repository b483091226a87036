-- Queue tickets again under a higher attempt, with the score they carry.
-- ARGV: grace_s, then ENTRY arguments per ticket.
-- Returns OK.

local now_us = clock_us()

for at = 2, #ARGV, ENTRY do
  local ticket = entry(at)
  local known = read(ticket.id)
  if not known or (tonumber(known.attempt) or -1) < tonumber(ticket.attempt) then
    if known then forget(known) end
    ticket.at = known and known.at or string.format('%016.0f%04d', now_us, math.floor(at / ENTRY))
    enqueue(ticket)
    redis.call('ZADD', ORIGINS, 'GT', exact(now_us / 1e6 + ARGV[1]), ticket.origin)
  end
end

settle()
return redis.status_reply('OK')
