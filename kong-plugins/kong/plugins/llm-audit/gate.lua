-- What is refused of calls that are let in: what could not be logged, and what
-- belongs to somebody else.
--
-- A WebSocket is a tunnel: nothing in it would be in the log. Other upgrades
-- (h2c, which some clients offer with every call) go no further than Kong, and
-- the call is answered as if they were not asked for.
--
-- Room for large bodies is shared fairly, see upload_room.
--
-- Stored responses are those of whoever made them, see stored_responses.

local request_body = require "kong.plugins.llm-audit.request_body"
local stored_responses = require "kong.plugins.llm-audit.stored_responses"
local upload_room = require "kong.plugins.llm-audit.upload_room"

local find = string.find
local kong = kong
local lower = string.lower
local ngx = ngx

local M = {}


local function refusal_for_room(conf, call)
  local size = request_body.declared_size()
  if not size and not ngx.var.http_transfer_encoding then
    return nil
  end

  local holding, lacking = upload_room.take(stored_responses.caller(), size,
                                            conf.upload_room_mb * 1048576)
  call.holding = holding
  if not lacking then
    return nil
  end

  return {
    status = lacking == "user" and 429 or 503,
    headers = { ["Retry-After"] = "5" },
    message = lacking == "user"
              and "Too many large requests of yours are on their way; wait "
                  .. "until they have ended"
              or "Too many large requests are on their way",
  }
end


-- @return nil, or how to answer: { status, headers, message or body }
function M.refusal(conf, call)
  local upgrade = kong.request.get_header("Upgrade")
  if upgrade and find(lower(upgrade), "websocket", 1, true) then
    return { status = 400, message = "WebSockets are not supported" }
  end

  return stored_responses.refusal_of_path() or refusal_for_room(conf, call)
end


-- The body of the call is there.
function M.settle(call, size)
  if call.holding then
    upload_room.settle(call.holding,
                       size > upload_room.SMALL_BYTES and size or 0)
  end
end


-- The call has ended.
function M.leave(call)
  if call.holding then
    upload_room.give_back(call.holding)
    call.holding = nil
  end
end


return M
