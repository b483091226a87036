-- Keep records, each with the beginning of its log.
-- ARGV: time to live in milliseconds, then (call, epoch, owner, age in microseconds, content, log) each.
-- Returns 'done' or 'fenced' each.

local written, now_us = {}, clock_us()
for at = 2, #ARGV, 6 do
  local record, log = RECORD .. ':' .. ARGV[at], LOG .. ':' .. ARGV[at]
  local epoch = epoch_of(record)
  if epoch and epoch > tonumber(ARGV[at + 1]) then
    written[#written + 1] = 'fenced'
  else
    redis.call('HSET', record, 'epoch', ARGV[at + 1], 'owner', ARGV[at + 2],
      'begun', integer(now_us - ARGV[at + 3]), 'content', ARGV[at + 4])
    redis.call('PEXPIRE', record, ARGV[1])
    redis.call('DEL', log)
    if ARGV[at + 5] ~= '' then redis.call('SET', log, ARGV[at + 5], 'PX', ARGV[1]) end
    written[#written + 1] = 'done'
  end
end
return written
