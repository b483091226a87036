-- Put a call's tickets and lease them, all or none, where nothing waits.
-- ARGV: replica, epoch, grace_s, number of classes, (class, figure) each, then ENTRY arguments per ticket.
-- Returns the scores in the order of ARGV; 0 if something waits or a ticket is known; nil if the epoch does not hold
-- the replica.

local replica, first = ARGV[1], 5 + 2 * ARGV[4]
if not holds(replica, ARGV[2]) then return false end
if redis.call('EXISTS', HEADS) == 1 then return 0 end
for at = first, #ARGV, ENTRY do
  if redis.call('EXISTS', TICKET .. ':' .. ARGV[at]) == 1 then return 0 end
end

local now_us, scores = clock_us(), {}
local now_s = now_us / 1e6
for at = first, #ARGV, ENTRY do
  local ticket = entry(at)
  ticket.score = exact(now_s + ticket.slack)
  ticket.at = arrival(now_us, #scores + 1)
  hold(ticket, 'replica', replica)
  redis.call('SADD', LEASED .. ':' .. replica, ticket.id)
  -- Where nothing waits a virtual clock cannot rightly be ahead (put.lua's max_lead_s).
  set_tag(ticket, now_s + ticket.cost, now_s)
  note_origin(ticket.origin, now_s + ARGV[3])
  scores[#scores + 1] = ticket.score
end

for at = 5, first - 1, 2 do redis.call('HSET', SERVED, ARGV[at], ARGV[at + 1]) end
return scores
