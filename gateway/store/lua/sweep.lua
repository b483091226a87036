-- Forget what is leased to a replica and not live there; the rest stays, and is the replica's driver's.
-- ARGV: replica, epoch, then (id, attempt) each that is live.
-- Returns the ids forgotten, or nil if the epoch does not hold the replica.

local replica = ARGV[1]
if not holds(replica, ARGV[2]) then return false end

local live = {}
for at = 3, #ARGV, 2 do live[ARGV[at + 1] .. ' ' .. ARGV[at]] = true end

local forgotten = {}
for _, id in ipairs(redis.call('SMEMBERS', LEASED .. ':' .. replica)) do
  local ticket = read(id)
  if not ticket or not live[ticket.attempt .. ' ' .. id] then
    forgotten[#forgotten + 1] = id
    if ticket then forget(ticket) else redis.call('SREM', LEASED .. ':' .. replica, id) end
  end
end

settle()
return forgotten
