-- Forget (id, attempt)s, queued or leased.
-- ARGV: (id, attempt) each.
-- Returns OK.

for at = 1, #ARGV, 2 do
  local ticket = read(ARGV[at])
  if ticket and ticket.attempt == ARGV[at + 1] then forget(ticket) end
end

settle()
return redis.status_reply('OK')
