-- Refuses calls although their key is valid: what could not be logged, and what
-- another user stored.
--
-- A WebSocket is a tunnel: nothing in it would be in the log. Other upgrades
-- (h2c, which some clients offer with every call) go no further than Kong, and
-- the call is answered as if they were not asked for.
--
-- Room for large bodies is shared fairly, see llm_gateway.upload_room.
--
-- A stored response is for the user who made it alone, see stored_responses.

local reading = require "llm_gateway.reading"
local stored_responses = require "kong.plugins.llm-audit.stored_responses"

local find = string.find
local lower = string.lower
local ngx = ngx

local M = {}


-- @param asked what is known of the request, see llm_gateway.reading
-- @param path that goes to the model server
-- @return nil, or how to answer: { status, headers, message or body }
function M.refusal(conf, asked, path)
  local upgrade = ngx.var.http_upgrade
  if upgrade and find(lower(upgrade), "websocket", 1, true) then
    return { status = 400, message = "WebSockets are not supported" }
  end

  return stored_responses.refusal_of_path(path)
         or reading.take_room(asked, conf.upload_room_mb * 1048576)
end


return M
