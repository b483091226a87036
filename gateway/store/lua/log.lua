-- Write to the logs of records, and prolong both.
-- ARGV: time to live in milliseconds, then (call, epoch, offset, data) each.
-- Returns 'done', 'fenced' or 'missing' each.

local written = {}
for at = 2, #ARGV, 4 do
  local record, log = RECORD .. ':' .. ARGV[at], LOG .. ':' .. ARGV[at]
  local epoch, size = epoch_of(record), redis.pcall('STRLEN', log)
  if epoch and epoch ~= tonumber(ARGV[at + 1]) then
    written[#written + 1] = 'fenced'
  elseif not epoch or type(size) == 'table' or size < tonumber(ARGV[at + 2]) then
    written[#written + 1] = 'missing'
  else
    if ARGV[at + 3] ~= '' then redis.call('SETRANGE', log, ARGV[at + 2], ARGV[at + 3]) end
    redis.call('PEXPIRE', record, ARGV[1])
    redis.call('PEXPIRE', log, ARGV[1])
    written[#written + 1] = 'done'
  end
end
return written
