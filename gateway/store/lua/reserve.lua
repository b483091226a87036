-- Take one request, one stream and tokens of a tenant's quota, all or none; or what another reservation has taken.
-- ARGV: id, tokens, ttl_s, requests per minute, tokens per minute, streams, that other one's id or ''; an empty bound
-- is none.
-- Returns {what there is too much of or '', now_us, and of requests and of tokens each: used, the last second in
-- which some were used (0: none), the second that must be a minute past to make room (0: there is room)}.

local id, tokens = ARGV[1], tonumber(ARGV[2])

local used, sums, old = {requests = {}, tokens = {}}, {requests = 0, tokens = 0}, {}
local fields = redis.call('HGETALL', USED)
for i = 1, #fields, 2 do
  local at, unit = fields[i]:match('^(%d+):(%a+)$')
  at = tonumber(at)
  if at > second - SECONDS then
    used[unit][at] = tonumber(fields[i + 1])
    sums[unit] = sums[unit] + used[unit][at]
  else
    old[#old + 1] = fields[i]
  end
end

-- The last second with some use of the unit, and the one to wait for until `more` fit.
local function look(unit, more, limit)
  local last, full, over = 0, 0, 0
  if limit then over = sums[unit] + more - limit end
  for at = second - SECONDS + 1, second do
    local here = used[unit][at] or 0
    if here > 0 then
      last = at
      if over > 0 then full = at end
      over = over - here
    end
  end
  -- The clock was set back: some of it lies ahead.
  if over > 0 then full = second end
  return last, full
end

local last_request, full_requests = look('requests', 1, tonumber(ARGV[4]))
local last_token, full_tokens = look('tokens', tokens, tonumber(ARGV[5]))
local max_streams, former = tonumber(ARGV[6]), ARGV[7]

local denied, lives = '', tonumber(redis.call('ZSCORE', STREAMS, former) or 0) > now_us
local held = lives and redis.call('HGET', HELD, former)
if held then
  redis.call('HSET', HELD, id, held)
  prolong(id, ARGV[3])
  redis.call('HDEL', HELD, former)
  redis.call('ZREM', STREAMS, former)
  full_requests, full_tokens = 0, 0
elseif full_requests > 0 or full_tokens > 0 then
  denied = full_requests >= full_tokens and 'requests' or 'tokens'
elseif max_streams and redis.call('ZCOUNT', STREAMS, '(' .. integer(now_us), '+inf') >= max_streams then
  denied = 'streams'
else
  -- Deletions last: at maxmemory this is refused.
  use(integer(second), 'requests', 1)
  use(integer(second), 'tokens', tokens)
  redis.call('HSET', HELD, id, integer(second) .. ' ' .. integer(tokens))
  prolong(id, ARGV[3])
  forget_dead()
  if old[1] then redis.call('HDEL', USED, unpack(old)) end
  sums.requests, sums.tokens = sums.requests + 1, sums.tokens + tokens
  last_request = second
  if tokens > 0 then last_token = second end
end

return {
  denied, integer(now_us),
  integer(sums.requests), integer(last_request), integer(full_requests),
  integer(sums.tokens), integer(last_token), integer(full_tokens),
}
