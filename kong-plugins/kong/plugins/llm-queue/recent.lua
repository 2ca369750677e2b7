-- How much the calls of an upstream held of its places in the last half minute,
-- in the shared dict `llm_queue`. Time is cut into windows.
--
--   e:UPSTREAM:USER:WINDOW  seconds for which calls of a user held a place that
--                           ended in a window, if he was not greedy
--   g:UPSTREAM:USER:WINDOW  the same if he was
--   o:UPSTREAM:WINDOW       the sum of e: over all users
--   y:UPSTREAM:WINDOW       users with such calls
--   f:UPSTREAM              since when there is o: without a window between
--
-- The current window and what of the one before is in the last half minute make
-- an average: as much as a call adds is known at once, and nothing is kept for
-- each call. No function yields.

local shared_number = require "llm_gateway.shared_number"

local floor = math.floor
local max = math.max
local min = math.min

local WINDOW_SECONDS = 30

-- Two windows, and room for clocks.
local KEPT_SECONDS = 90

-- Less than this time is too short for an average.
local FIRST_SECONDS = 3

local M = {}


-- @return the new sum; nil without room
local function add(dict, key, by)
  return shared_number.add(dict, key, by, KEPT_SECONDS)
end


-- A call has given its place back.
-- @param whose the user's key of the upstream
-- @param is_other whether he was not greedy
function M.note(dict, upstream, whose, is_other, seconds, now)
  local window = floor(now / WINDOW_SECONDS)
  -- What was before is no longer recent.
  seconds = min(seconds, WINDOW_SECONDS)

  local kind = is_other and "e:" or "g:"
  if add(dict, kind .. whose .. ":" .. window, seconds) == seconds then
    add(dict, "y:" .. upstream .. ":" .. window, 1)
  end
  if is_other then
    local key = "o:" .. upstream .. ":"
    if add(dict, key .. window, seconds) == seconds
      and not dict:get(key .. window - 1)
    then
      dict:safe_set("f:" .. upstream, now)
    end
  end
end


-- @return place-seconds of the last half minute
local function sum_of(dict, key, now)
  local window = floor(now / WINDOW_SECONDS)
  local past = now / WINDOW_SECONDS - window

  return (dict:get(key .. ":" .. window) or 0)
         + (dict:get(key .. ":" .. window - 1) or 0) * (1 - past)
end


-- @return how many places a user held on average
function M.places(dict, whose, now)
  return (sum_of(dict, "e:" .. whose, now) + sum_of(dict, "g:" .. whose, now))
         / WINDOW_SECONDS
end


-- @return how many users held places
function M.users(dict, upstream, now)
  local window = floor(now / WINDOW_SECONDS)

  return max(dict:get("y:" .. upstream .. ":" .. window) or 0,
             dict:get("y:" .. upstream .. ":" .. window - 1) or 0)
end


-- @param whose the user who is not meant; nil: all are
-- @return how many places others held on average who were not greedy
function M.of_others(dict, upstream, now, whose)
  local seconds = sum_of(dict, "o:" .. upstream, now)
                  - (whose and sum_of(dict, "e:" .. whose, now) or 0)
  local since = now - (dict:get("f:" .. upstream) or now)

  return max(seconds, 0) / min(max(since, FIRST_SECONDS), WINDOW_SECONDS)
end


return M
