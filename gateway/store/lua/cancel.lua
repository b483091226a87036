-- Forget tickets whatever their attempt.
-- ARGV: ids.
-- Returns {id, replica} of each that was leased.

local leased = {}
for _, id in ipairs(ARGV) do
  local ticket = read(id)
  if ticket then
    forget(ticket)
    if ticket.replica then leased[#leased + 1] = {id, ticket.replica} end
  end
end

settle()
return leased
