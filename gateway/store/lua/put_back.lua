-- Queue tickets again under a higher attempt, with the score they carry.
-- ARGV: grace_s, then ENTRY arguments per ticket.
-- Returns OK.

local now_us = clock_us()

for at = 2, #ARGV, ENTRY do
  local ticket = entry(at)
  local known = read(ticket.id)
  if not known or (tonumber(known.attempt) or -1) < tonumber(ticket.attempt) then
    if known then forget(known) end
    ticket.at = known and known.at or arrival(now_us, math.floor(at / ENTRY))
    enqueue(ticket)
    note_origin(ticket.origin, now_us / 1e6 + ARGV[1])
  end
end

settle()
return redis.status_reply('OK')
