-- What waits, by class and deadline slot.
-- Returns now_s and the sums (name, sum, ...).

return {exact(clock_us() / 1e6), redis.call('HGETALL', SUMS)}
