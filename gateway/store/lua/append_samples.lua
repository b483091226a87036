-- Add finished requests to those to learn from.
-- ARGV: how many to keep, then the samples.
-- Returns OK.

for at = 2, #ARGV do
  redis.call('XADD', SAMPLES, 'MAXLEN', ARGV[1], '*', 'sample', ARGV[at])
end
return redis.status_reply('OK')
