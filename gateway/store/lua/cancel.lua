-- Forget tickets whatever their attempt.
-- ARGV: ids.
-- Returns {id, replica} of each that was leased.

local leased = {}
forget_all(ARGV, leased)

settle()
return leased
