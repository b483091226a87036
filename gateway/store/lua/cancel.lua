-- Forget tickets up to the given attempts.
-- ARGV: (id, attempt) each.
-- Returns {id, replica} of each that was leased.

local leased = {}
for at = 1, #ARGV, 2 do
  local ticket = read(ARGV[at])
  if ticket and (tonumber(ticket.attempt) or -1) <= tonumber(ARGV[at + 1]) then withdraw(ticket, leased) end
end

settle()
return leased
