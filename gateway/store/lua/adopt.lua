-- Take a call over.
-- ARGV: call, owner, time to live in milliseconds.
-- Returns {epoch, the epoch before, age_s, content, log}, or nil if the owner has no such record.

local record, log = RECORD .. ':' .. ARGV[1], LOG .. ':' .. ARGV[1]
local last = epoch_of(record)
if not last or redis.call('HGET', record, 'owner') ~= ARGV[2] then return false end

local now_us = clock_us()
local epoch = integer(math.max(last + 1, now_us))
redis.call('HDEL', record, 'epoch')
redis.call('HSET', record, 'epoch', epoch)
redis.call('PEXPIRE', record, ARGV[3])
redis.call('PEXPIRE', log, ARGV[3])
local kept = redis.call('HMGET', record, 'begun', 'content')
local age_s = exact((now_us - (tonumber(kept[1] or nil) or now_us)) / 1e6)
return {epoch, integer(last), age_s, kept[2], redis.call('GET', log) or ''}
