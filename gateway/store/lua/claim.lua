-- Lease tickets that are still queued under the given attempt, in the given order.
-- ARGV: replica, epoch, number of classes, (class, figure) each, then (id, attempt) each.
-- Returns {id, attempt, score, meta, payload} each, or nil if the epoch does not hold the replica.

local replica, first = ARGV[1], 4 + 2 * ARGV[3]
if not holds(replica, ARGV[2]) then return false end

local claimed = {}
for at = first, #ARGV, 2 do
  local ticket = read(ARGV[at])
  if ticket and not ticket.replica and ticket.attempt == ARGV[at + 1] then
    local key = TICKET .. ':' .. ticket.id
    leave(ticket)
    redis.call('HSET', key, 'replica', replica)
    redis.call('SADD', LEASED .. ':' .. replica, ticket.id)
    local content = redis.call('HMGET', key, 'meta', 'payload')
    claimed[#claimed + 1] = {ticket.id, ticket.attempt, ticket.score, content[1], content[2]}
  end
end

if #claimed > 0 then
  for at = 4, first - 1, 2 do redis.call('HSET', SERVED, ARGV[at], ARGV[at + 1]) end
  settle()
end
return claimed
