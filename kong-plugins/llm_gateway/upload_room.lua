-- Room for request bodies on their way, in one worker: large ones stand in a
-- file system that all share until their call ends, and a body may trickle in
-- for hours.
--
-- A call takes the room that it announces before its body is read, and gives it
-- back when it ends. A user has at most half of the room, so that nobody alone
-- can take it from the others.
--
-- Pure: numbers only.

local ipairs = ipairs
local max = math.max

local M = {}

-- Smaller ones stay in nginx's memory (client_body_buffer_size).
M.SMALL_BYTES = 1048576

local size_of_all = 0
local held = 0
local held_by = {}


-- The most of several settings holds for who has none of its own.
-- @param configs of llm-audit
function M.allow_most(configs)
  local most = 0
  for _, conf in ipairs(configs) do
    most = max(most, conf.upload_room_mb)
  end
  size_of_all = most * 1048576
end


-- @return bytes for all bodies of the worker
function M.size()
  return size_of_all
end


-- @param size bytes that are announced; nil when they are not
-- @param room bytes for all, 0: as many as they like
-- @return what the call holds, nil when it needs nothing; "all" or "user" as a
-- second value when there is no room
function M.take(user, size, room)
  -- A body that hides its size is small as a rule, and there at once. More than
  -- an eighth would refuse users who send some of those at the same time, less
  -- would let one of them fill the room with bodies that trickle in.
  size = size or room / 8
  if room == 0 or size <= M.SMALL_BYTES then
    return nil
  end

  local of_user = held_by[user] or 0
  -- Whoever has nothing is served, however large it is, while there is room.
  if of_user > 0 and of_user + size > room / 2 then
    return nil, "user"
  end
  if held > 0 and held + size > room then
    return nil, "all"
  end

  held = held + size
  held_by[user] = of_user + size

  return { user = user, size = size }
end


-- The body is there: from now on the call holds what it really has.
-- @param holding what take() gave
function M.settle(holding, size)
  local more = size - holding.size
  held = held + more
  held_by[holding.user] = held_by[holding.user] + more
  holding.size = size
end


-- @param holding what take() gave
function M.give_back(holding)
  local user, size = holding.user, holding.size
  held = held - size

  local left = held_by[user] - size
  held_by[user] = left > 0 and left or nil
end


return M
