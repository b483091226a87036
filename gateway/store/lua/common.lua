-- What the verbs share; prepended to each of them.  Nothing here chooses anything.
--
-- KEYS: see keys.py, the same for every verb.
-- Fractions leave as strings of 17 digits: a Lua number in a reply is cut to an integer.
-- At maxmemory Redis refuses a script at its first write, if that write may need memory, and lets it run to its
-- end otherwise.  So what admits work writes with HSET first (refused whole), and what drains it or keeps a lease
-- deletes first (let through).

local TICKET, SET, HEADS, SUMS, TAG, SERVED, BUCKETS, LEASED, ORIGIN, ORIGINS, DRIVERS, STANDINGS, GATEWAYS,
  INBOX, RECORD, LOG, SAMPLES, SNAPSHOT = unpack(KEYS)

local FIELDS = {'attempt', 'origin', 'bin', 'class', 'score', 'at', 'slot', 'tokens', 'bytes', 'us', 'replica'}

-- The store's clock, in microseconds.
local function clock_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local function exact(number)
  return string.format('%.17g', number)
end

local function integer(number)
  return string.format('%.0f', number)
end

-- One field of a ticket, or false.  A key of another type is no ticket of ours: it goes.
local function field(id, name)
  local key = TICKET .. ':' .. id
  local value = redis.pcall('HGET', key, name)
  if type(value) == 'table' then
    redis.call('DEL', key)
    return false
  end
  return value
end

-- The ticket without its contents, or nil.  One with gaps is none of ours either.
local function read(id)
  local key = TICKET .. ':' .. id
  local values = redis.pcall('HMGET', key, unpack(FIELDS))
  local ticket = {id = id}
  for i, field in ipairs(FIELDS) do
    if not values[i] and field ~= 'replica' then
      if redis.call('EXISTS', key) == 1 then redis.call('DEL', key) end
      return nil
    end
    ticket[field] = values[i]
  end
  return ticket
end

-- The ticket in ARGV from `at` on: ENTRY arguments in the order of wire.entry_args.
local ENTRY = 14
local function entry(at)
  return {
    id = ARGV[at], attempt = ARGV[at + 1], origin = ARGV[at + 2], bin = ARGV[at + 3], class = ARGV[at + 4],
    tokens = ARGV[at + 5], bytes = ARGV[at + 6], us = ARGV[at + 7], meta = ARGV[at + 8], payload = ARGV[at + 9],
    score = ARGV[at + 10], tenant = ARGV[at + 11], slack = ARGV[at + 12], cost = ARGV[at + 13],
  }
end

-- What has changed is collected here and written once, by settle().
local touched, changes = {}, {}

local function add(sum, by)
  changes[sum] = (changes[sum] or 0) + by
end

local function account(ticket, sign)
  local tokens = sign * (tonumber(ticket.tokens) or 0)
  local slot = ticket.class .. ':' .. ticket.slot
  touched[ticket.bin .. ':' .. ticket.class] = true
  add('tickets', sign)
  add('tokens', tokens)
  add('bytes', sign * (tonumber(ticket.bytes) or 0))
  add('us', sign * (tonumber(ticket.us) or 0))
  add(slot .. ':tokens', tokens)
  add(slot .. ':us', sign * (tonumber(ticket.us) or 0))
end

local function set_of(ticket)
  return SET .. ':' .. ticket.bin .. ':' .. ticket.class
end

-- The deadline slot of a ticket: request.slot_of.
local function slot_of(score, slack)
  local level, width = 2, 32
  if slack <= 16 then level, width = 0, 0.5 elseif slack <= 128 then level, width = 1, 4 end
  return integer(4 * math.floor(score / width) + level + 0)
end

-- A ticket the store does not know becomes known, with any further fields.
local function hold(ticket, ...)
  ticket.slot = slot_of(tonumber(ticket.score), tonumber(ticket.slack))
  redis.call('HSET', TICKET .. ':' .. ticket.id,
    'meta', ticket.meta, 'payload', ticket.payload, 'attempt', ticket.attempt, 'origin', ticket.origin,
    'bin', ticket.bin, 'class', ticket.class, 'score', ticket.score, 'at', ticket.at, 'slot', ticket.slot,
    'tokens', ticket.tokens, 'bytes', ticket.bytes, 'us', ticket.us, ...)
  redis.call('SADD', ORIGIN .. ':' .. ticket.origin, ticket.id)
end

-- And queued.
local function enqueue(ticket)
  hold(ticket)
  redis.call('ZADD', set_of(ticket), ticket.score, ticket.at .. ticket.id)
  account(ticket, 1)
end

-- The place of the i-th ticket put at that time among equal scores: 20 digits.
local function arrival(now_us, i)
  return string.format('%016.0f%04d', now_us, i)
end

-- The virtual clock of a ticket's tenant.
local function tag_of(ticket)
  return TAG .. ':' .. ticket.class .. ':' .. ticket.tenant
end

-- It goes on to then, unless that is past.
local function set_tag(ticket, then_s, now_s)
  if then_s > now_s then
    redis.call('SET', tag_of(ticket), exact(then_s), 'PXAT', integer(math.ceil(then_s * 1e3)))
  end
end

-- Who has put something lives, for a while.
local function note_origin(origin, until_s)
  redis.call('ZADD', ORIGINS, 'GT', exact(until_s), origin)
end

-- A queued ticket leaves its set.
local function leave(ticket)
  redis.call('ZREM', set_of(ticket), ticket.at .. ticket.id)
  account(ticket, -1)
end

-- A ticket, queued or leased, becomes unknown.
local function forget(ticket)
  redis.call('DEL', TICKET .. ':' .. ticket.id)
  redis.call('SREM', ORIGIN .. ':' .. ticket.origin, ticket.id)
  if ticket.replica then
    redis.call('SREM', LEASED .. ':' .. ticket.replica, ticket.id)
  else
    leave(ticket)
  end
end

-- Forgets a ticket; if it was leased, {id, replica} is added to `leased`.
local function withdraw(ticket, leased)
  forget(ticket)
  if ticket.replica then leased[#leased + 1] = {ticket.id, ticket.replica} end
end

local function write_heads()
  for set in pairs(touched) do
    local head = redis.call('ZRANGE', SET .. ':' .. set, 0, 0, 'WITHSCORES')
    if head[1] then
      local count = redis.call('ZCARD', SET .. ':' .. set)
      redis.call('HSET', HEADS, set, count .. ' ' .. head[2] .. ' ' .. head[1]:sub(21))
    else
      redis.call('HDEL', HEADS, set)
    end
  end
end

local function write_sums(names)
  local sums, kept, zero = redis.call('HMGET', SUMS, unpack(names)), {}, {}
  for i, name in ipairs(names) do
    local sum = (sums[i] or 0) + changes[name]
    if sum == 0 then
      zero[#zero + 1] = name
    else
      kept[#kept + 1] = name
      kept[#kept + 1] = integer(sum)
    end
  end
  if zero[1] then redis.call('HDEL', SUMS, unpack(zero)) end
  if kept[1] then redis.call('HSET', SUMS, unpack(kept)) end
end

-- Brings heads and sums up to date; the last thing every verb does that queued or removed anything.
local function settle()
  write_heads()
  local names = {}
  for name in pairs(changes) do
    names[#names + 1] = name
    -- Lua's stack, and so unpack, has an end.
    if #names == 1000 then
      write_sums(names)
      names = {}
    end
  end
  if names[1] then write_sums(names) end
  -- When nothing is queued the sums are nothing, whatever a ticket that somebody else destroyed has left in them.
  if next(changes) and redis.call('HEXISTS', SUMS, 'tickets') == 0 then redis.call('DEL', SUMS) end
end

-- The last epoch of a replica, its lease's end in microseconds and who has it (nil: it was given up).
local function driver(replica)
  local stored = redis.call('HGET', DRIVERS, replica) or ''
  local epoch, expiry_us, gateway = stored:match('^(%d+) (%d+)(.*)$')
  return epoch, tonumber(expiry_us or 0), gateway and gateway:match('^ (.*)$')
end

local function set_driver(replica, epoch, expiry_us, gateway)
  redis.call('HDEL', DRIVERS, replica)
  redis.call('HSET', DRIVERS, replica, epoch .. ' ' .. integer(expiry_us) .. (gateway and ' ' .. gateway or ''))
end

local function holds(replica, epoch)
  local last, expiry_us = driver(replica)
  return last == epoch and expiry_us > clock_us()
end

-- The epoch of a record, or nil.  A key of another type is no record of ours: it goes.
local function epoch_of(record)
  local epoch = redis.pcall('HGET', record, 'epoch')
  if type(epoch) == 'table' then redis.call('DEL', record) end
  return type(epoch) == 'string' and tonumber(epoch) or nil
end
