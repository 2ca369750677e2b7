-- What is refused of calls that are let in: what could not be logged, and what
-- belongs to somebody else.
--
-- A WebSocket is a tunnel: nothing in it would be in the log. Other upgrades
-- (h2c, which some clients offer with every call) go no further than Kong, and
-- the call is answered as if they were not asked for.
--
-- Room for large bodies is shared fairly, see upload_room.
--
-- Stored responses are those of whoever made them, see response_owners.

local request_body = require "kong.plugins.llm-audit.request_body"
local response_owners = require "kong.plugins.llm-audit.response_owners"
local upload_room = require "kong.plugins.llm-audit.upload_room"

local find = string.find
local format = string.format
local kong = kong
local lower = string.lower
local match = string.match
local ngx = ngx

local owners = response_owners.new(ngx.shared.llm_gateway)

local M = {}


-- @return what stands for who calls, in memory only
local function caller()
  local consumer = kong.client.get_consumer()
  return consumer and consumer.id or ""
end


-- @return the path that goes to the model server, as Kong spells it
local function forwarded_path()
  local upstream_uri = ngx.var.upstream_uri
  if upstream_uri and upstream_uri ~= "" then
    return match(upstream_uri, "^[^?]*")
  end

  return kong.request.get_path()
end


-- @return the answer to an id that the server does not have, as vLLM gives it
local function not_found(id)
  return {
    status = 404,
    body = {
      error = {
        message = format("Response with id '%s' not found.", id),
        type = "invalid_request_error",
        param = "response_id",
        code = 404,
      },
    },
  }
end


local function refusal_for_room(conf, call)
  local size = request_body.declared_size()
  if not size and not ngx.var.http_transfer_encoding then
    return nil
  end

  local holding, lacking = upload_room.take(caller(), size,
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

  local id = match(forwarded_path(), "/v1/responses/([^/]+)")
  return id and M.refusal_of_response(id) or refusal_for_room(conf, call)
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


-- @param id of a response that the caller wants to have or to continue
-- @return nil, or how to answer
function M.refusal_of_response(id)
  return not owners:is_of(id, caller()) and not_found(id) or nil
end


-- @return seen(chunk), to be called with an answer's chunks for as long as it
-- returns true; nil where the answer makes no response
function M.watch(status, content_encoding)
  if status ~= 200 or content_encoding
    or kong.request.get_method() ~= "POST"
    or not find(forwarded_path(), "/v1/responses/?$")
  then
    return nil
  end

  local user = caller()
  local read = response_owners.id_reader()

  return function(chunk)
    local id, goes_on = read(chunk)
    if id then
      owners:note(id, user)
    end

    return goes_on
  end
end


return M
