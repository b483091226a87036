-- Queue a call's tickets, all or none.  A ticket already known is left as it is.
-- ARGV: max_tickets, max_tokens, max_bytes, max_us, max_lead_s, grace_s, then ENTRY arguments per ticket.
-- Returns the scores in the order of ARGV, or the name of the bound that would be passed.

local now_us = clock_us()
local now_s, grace_s = now_us / 1e6, tonumber(ARGV[6])
local group, fresh, tokens, bytes, us = {}, {}, 0, 0, 0

for at = 7, #ARGV, ENTRY do
  local id = ARGV[at]
  local score = field(id, 'score')
  if score then
    group[id] = {score = score}
  elseif not group[id] then
    group[id] = entry(at)
    fresh[#fresh + 1] = group[id]
    tokens = tokens + group[id].tokens
    bytes = bytes + group[id].bytes
    us = us + group[id].us
  end
end

if #fresh > 0 then
  local queued = redis.call('HMGET', SUMS, 'tickets', 'tokens', 'bytes', 'us')
  if (queued[1] or 0) + #fresh > tonumber(ARGV[1]) then return 'tickets' end
  if (queued[2] or 0) + tokens > tonumber(ARGV[2]) then return 'tokens' end
  if (queued[3] or 0) + bytes > tonumber(ARGV[3]) then return 'bytes' end
  if (queued[4] or 0) + us > tonumber(ARGV[4]) then return 'seconds' end
end

for i, ticket in ipairs(fresh) do
  local tag = tonumber(redis.call('GET', tag_of(ticket)) or 0)
  local start = math.max(now_s, math.min(tag, now_s + ARGV[5]))
  ticket.score = exact(start + ticket.slack)
  ticket.at = arrival(now_us, i)
  enqueue(ticket)
  set_tag(ticket, start + ticket.cost, now_s)
  note_origin(ticket.origin, now_s + grace_s)
end

settle()
local scores = {}
for at = 7, #ARGV, ENTRY do scores[#scores + 1] = group[ARGV[at]].score end
return scores
