-- What the verbs of a tenant's quota share; prepended to each of them.
--
-- KEYS: see TenantKeys in keys.py.

local USED, STREAMS, HELD = unpack(KEYS)

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local second = math.floor(now_us / 1e6)
-- What was used in a second counts until the minute after its end.
local SECONDS = 61

local function integer(number)
  return string.format('%.0f', number)
end

-- Streams whose time is up are none.  A deletion: what begins with it runs at maxmemory too.
local function forget_dead()
  local dead = redis.call('ZRANGEBYSCORE', STREAMS, '-inf', integer(now_us))
  redis.call('ZREMRANGEBYSCORE', STREAMS, '-inf', integer(now_us))
  for _, id in ipairs(dead) do redis.call('HDEL', HELD, id) end
end

local function prolong(id, ttl_s)
  redis.call('ZADD', STREAMS, integer(now_us + ttl_s * 1e6), id)
  redis.call('PEXPIRE', STREAMS, integer(ttl_s * 1e3))
  redis.call('PEXPIRE', HELD, integer(ttl_s * 1e3))
end

local function use(at, unit, by)
  redis.call('HINCRBY', USED, at .. ':' .. unit, integer(by))
  redis.call('EXPIRE', USED, SECONDS + 1)
end
