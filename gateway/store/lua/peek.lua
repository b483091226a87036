-- Up to limit queued tickets of some sets, best score first, nothing removed.
-- ARGV: limit, then sets as <bin>:<class>.
-- Returns {id, attempt, score, meta} each.

local sets = {}
for i = 2, #ARGV do sets[#sets + 1] = ARGV[i] end
return best(sets, tonumber(ARGV[1]))
