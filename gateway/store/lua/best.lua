-- What queue and peek share; prepended to both.

-- Up to limit queued tickets of some sets (<bin>:<class>), best score first, nothing removed: {id, attempt, score,
-- meta} each.
local function best(sets, limit)
  local page = math.ceil(limit / #sets) + 1
  local cursors = {}  -- one per set that has more, the one with the best ticket last

  local function precedes(a, b)
    if a.score ~= b.score then return a.score < b.score end
    return a.member < b.member
  end

  local function place(cursor)
    local i = #cursors
    while i > 0 and precedes(cursors[i], cursor) do
      cursors[i + 1] = cursors[i]
      i = i - 1
    end
    cursors[i + 1] = cursor
  end

  -- Somebody else deleted or overwrote its hash: nobody could ever claim it.
  local function drop(cursor)
    redis.call('DEL', TICKET .. ':' .. cursor.member:sub(21))
    redis.call('ZREM', cursor.key, cursor.member)
    touched[cursor.set] = true
    add('tickets', -1)
    cursor.first = cursor.first - 1
  end

  -- Moves the cursor to its set's next ticket and places it, or lets it go at the end of the set.
  local function advance(cursor)
    while true do
      cursor.at = cursor.at + 1
      if cursor.at > #cursor.page then
        cursor.first, cursor.at = cursor.first + #cursor.page, 1
        cursor.page = redis.call('ZRANGE', cursor.key, cursor.first, cursor.first + page - 1)
      end
      cursor.member = cursor.page[cursor.at]
      if not cursor.member then return end
      local ticket = redis.pcall('HMGET', TICKET .. ':' .. cursor.member:sub(21), 'attempt', 'score', 'meta')
      cursor.ticket, cursor.score = ticket, tonumber(ticket[2] or nil)
      if ticket[1] and cursor.score and ticket[3] then return place(cursor) end
      drop(cursor)
    end
  end

  for _, set in ipairs(sets) do
    advance({set = set, key = SET .. ':' .. set, first = 0, at = 0, page = {}})
  end

  local found = {}
  while #found < limit and #cursors > 0 do
    local cursor = table.remove(cursors)
    local ticket = cursor.ticket
    found[#found + 1] = {cursor.member:sub(21), ticket[1], ticket[2], ticket[3]}
    if #found < limit then advance(cursor) end
  end
  settle()
  return found
end
