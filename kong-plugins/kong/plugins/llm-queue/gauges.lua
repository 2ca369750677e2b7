-- What the node tells the collector of its places, see docs/contract.md.

local places = require "kong.plugins.llm-queue.places"

local match = string.match
local pairs = pairs

-- Users with waiting calls that are told; more of them would be noise.
local MAX_USERS = 200

local M = {}


local function of_upstream(models, upstream)
  local model = models[upstream]
  if not model then
    model = { in_flight = 0, waiting = 0 }
    models[upstream] = model
  end

  return model
end


local function note_held(model, user, count)
  model.in_flight = model.in_flight + count
  local share = model.share
  if not share or count > share.places
    or count == share.places and user < share.user
  then
    model.share = { user = user, places = count }
  end
end


-- @param values of the dict, by key
-- @return { models, waiting }
function M.of(values)
  local models, waiting, users = {}, {}, 0
  for key, count in pairs(values) do
    local kind, whose = match(key, "^([uv]):(.*)$")
    local upstream, user = places.names(whose or "")
    if upstream and count > 0 then
      local model = of_upstream(models, upstream)
      if kind == "u" then
        note_held(model, user, count)
      else
        model.waiting = model.waiting + count
        users = users + (waiting[user] and 0 or 1)
        if waiting[user] or users <= MAX_USERS then
          waiting[user] = (waiting[user] or 0) + count
        end
      end
    end
  end

  return { models = models, waiting = waiting }
end


return M
