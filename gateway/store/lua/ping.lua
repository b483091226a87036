-- Show that the node with this queue runs scripts.
-- ARGV: anything.
-- Returns it.

return ARGV[1]
