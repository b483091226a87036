-- Append a letter to each of these inboxes.
-- ARGV: most letters that an inbox keeps, its time to live in milliseconds, then (gateway, letter) each.
-- Returns OK.

for at = 3, #ARGV, 2 do
  local key = INBOX .. ':' .. ARGV[at]
  redis.call('XTRIM', key, 'MAXLEN', '~', ARGV[1])
  redis.call('XADD', key, '*', 'letter', ARGV[at + 1])
  redis.call('PEXPIRE', key, ARGV[2])
end
return redis.status_reply('OK')
