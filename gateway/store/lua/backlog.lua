-- What waits, by class and deadline slot, and where a tenant stands in one class.
-- ARGV: class, tenant.
-- Returns now_s, the tenant's tag or nil, and the sums (name, sum, ...).

return {exact(clock_us() / 1e6), redis.call('GET', TAG .. ':' .. ARGV[1] .. ':' .. ARGV[2]), redis.call('HGETALL', SUMS)}
