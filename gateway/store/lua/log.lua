-- Write to the logs of records, and prolong some of both; a log that begins here has no time to live yet.
-- ARGV: time to live in milliseconds, then (call, epoch, offset, bytes, whether to prolong) of each one after the
-- other as MessagePack, which takes less time than so many words, and what to write of all together.
-- Returns 'done', 'fenced' or 'missing' each.

-- How long the log was before, or nil: it is shorter than the offset, or no log of ours.  Each streamed token comes
-- by here, and a command takes as long as all else about one: so it is appended as if the log ended there, and
-- looked at only if it did not.
local function write(log, offset, data)
  if data == '' then
    local size = redis.pcall('STRLEN', log)
    return type(size) == 'number' and size >= offset and size or nil
  end
  local size = redis.pcall('APPEND', log, data)
  if type(size) == 'table' then return nil end
  local before = size - #data
  if before == offset then return before end
  if before == 0 then
    redis.call('DEL', log)
    return nil
  end
  redis.call('SET', log, redis.call('GETRANGE', log, 0, before - 1), 'KEEPTTL')
  if before < offset then return nil end
  redis.call('SETRANGE', log, offset, data)
  return before
end

local written, writes, past = {}, cmsgpack.unpack(ARGV[2]), 0
for at = 1, #writes, 5 do
  local record, log = RECORD .. ':' .. writes[at], LOG .. ':' .. writes[at]
  local data = string.sub(ARGV[3], past + 1, past + writes[at + 3])
  past = past + writes[at + 3]
  if tonumber(redis.pcall('HGET', record, 'epoch')) == writes[at + 1] then
    local before = write(log, writes[at + 2], data)
    if before == 0 or before and writes[at + 4] then
      redis.call('PEXPIRE', record, ARGV[1])
      redis.call('PEXPIRE', log, ARGV[1])
    end
    written[#written + 1] = before and 'done' or 'missing'
  else
    written[#written + 1] = epoch_of(record) and 'fenced' or 'missing'
  end
end
return written
