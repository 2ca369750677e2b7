-- What callers are told who get no place.

local ceil = math.ceil
local format = string.format
local max = math.max
local min = math.min

-- The longest that SDKs wait because of Retry-After.
local MOST_RETRY_SECONDS = 60

local WHY = {
  user = "%d of your calls wait for %s already, which is the most that one "
         .. "user may have",
  all = "%d calls wait for %s already",
  late = "no place for it came free within %d seconds; it waited for %s",
}

local M = {}


-- @param why user, all or late
-- @param number that belongs to it
-- @param model its name; nil: the model server
-- @param seconds in which those who wait now may be served
-- @param contact who can help; nil: nobody is named
-- @return the error, as llm_gateway.answers wants it, with headers
function M.error(why, number, model, seconds, contact)
  local retry = min(max(ceil(seconds), 1), MOST_RETRY_SECONDS)
  local message = "The call was not served: "
                  .. format(WHY[why], number, model or "the model server")
                  .. ". Have fewer calls under way at a time, or try again in "
                  .. retry .. " s."
  if contact then
    message = message .. " To get more, ask " .. contact .. "."
  end

  return {
    status = 429,
    message = message,
    type = "requests",
    code = "rate_limit_exceeded",
    anthropic_type = "rate_limit_error",
    headers = { ["Retry-After"] = format("%d", retry) },
  }
end


return M
