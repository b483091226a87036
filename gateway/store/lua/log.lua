-- Write to the logs of records, and prolong some of both; a log that begins here has no time to live yet.
-- ARGV: time to live in milliseconds, then (call, epoch, offset, data, 1 to prolong) each.
-- Returns 'done', 'fenced' or 'missing' each.

local written = {}
for at = 2, #ARGV, 5 do
  local record, log = RECORD .. ':' .. ARGV[at], LOG .. ':' .. ARGV[at]
  local epoch, size = epoch_of(record), redis.pcall('STRLEN', log)
  if epoch and epoch ~= tonumber(ARGV[at + 1]) then
    written[#written + 1] = 'fenced'
  elseif not epoch or type(size) == 'table' or size < tonumber(ARGV[at + 2]) then
    written[#written + 1] = 'missing'
  else
    if ARGV[at + 3] ~= '' then redis.call('SETRANGE', log, ARGV[at + 2], ARGV[at + 3]) end
    if ARGV[at + 4] == '1' or size == 0 then
      redis.call('PEXPIRE', record, ARGV[1])
      redis.call('PEXPIRE', log, ARGV[1])
    end
    written[#written + 1] = 'done'
  end
end
return written
