-- The calls of this worker that wait, and which of them gets the next place.
--
-- First a call of class interactive, then one of class batch, then one that
-- waits behind all others (`behind`). Within a class, the call of the user who
-- holds the fewest places divided by the user's weight; of that user's calls,
-- the one that has waited longest. The order is one number (`rank`), so that
-- workers can compare: the smallest is next.
--
-- Pure: tables and numbers only.

local min = math.min
local next = next
local pairs = pairs
local setmetatable = setmetatable

local CLASSES = { interactive = 0, batch = 1, behind = 2 }

-- A rank is CLASS, then places by weight in thousandths, then the moment in
-- milliseconds of the last eleven days: together less than 2^53.
local CLASS_STEP = 3e15
local LOAD_STEP = 1e9
local MOST_LOAD = 2999999
local MOMENTS = 1e9

local M = {}

local Turns = {}
Turns.__index = Turns


-- @return { upstreams, most: places of each upstream for which calls wait,
-- count: of calls }
function M.new()
  return setmetatable({ upstreams = {}, most = {}, count = 0 }, Turns)
end


-- @param class interactive, batch or behind
-- @param held places of the user
-- @param since when the call came, in seconds
function M.rank(class, held, weight, since)
  local load = min(held * 1000 / weight, MOST_LOAD)
  load = load - load % 1

  return CLASSES[class] * CLASS_STEP + load * LOAD_STEP
         + (since * 1000) % MOMENTS
end


-- @param call { upstream, user, class, weight, since, most }
function Turns:join(call)
  local users = self.upstreams[call.upstream]
  if not users then
    users = {}
    self.upstreams[call.upstream] = users
  end
  self.most[call.upstream] = call.most

  -- Calls of a user in the order in which they came; classes apart.
  local key = call.class .. ":" .. call.user
  local line = users[key]
  if not line then
    line = { first = 1, last = 0 }
    users[key] = line
  end
  line.last = line.last + 1
  line[line.last] = call
  call.line, call.key = line, key
  self.count = self.count + 1
end


-- The call is served, or goes.
function Turns:leave(call)
  local line = call.line
  if not line then
    return
  end

  call.line = nil
  self.count = self.count - 1
  for i = line.first, line.last do
    if line[i] == call then
      line[i] = false
      break
    end
  end
  while line.first <= line.last and not line[line.first] do
    line[line.first] = nil
    line.first = line.first + 1
  end
  if line.first > line.last then
    local users = self.upstreams[call.upstream]
    users[call.key] = nil
    if not next(users) then
      self.upstreams[call.upstream] = nil
      self.most[call.upstream] = nil
    end
  end
end


-- @param held returns the places of a user
-- @param may returns whether a call may be served now; nil: any may
-- @return the call that is due first, its rank; nil where none is
function Turns:first(upstream, held, may)
  local best, best_rank
  for _, line in pairs(self.upstreams[upstream] or {}) do
    local call = line[line.first]
    local rank = M.rank(call.class, held(upstream, call.user), call.weight,
                        call.since)
    if (not best_rank or rank < best_rank) and (not may or may(call)) then
      best, best_rank = call, rank
    end
  end

  return best, best_rank
end


return M
