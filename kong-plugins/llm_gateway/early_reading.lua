-- Reading the body of a request in a plugin in front of llm-audit: its room
-- among large bodies is taken, it may come too late, and its client may go away
-- meanwhile.

local reading = require "llm_gateway.reading"
local upload_room = require "llm_gateway.upload_room"

local error = error
local kong = kong
local pcall = pcall
local require = require

local M = {}


local function too_large(err)
  return {
    status = err.status,
    message = err.message .. ".",
    type = err.status == 429 and "requests" or "server_error",
    code = err.status == 429 and "rate_limit_exceeded" or nil,
    anthropic_type = err.status == 429 and "rate_limit_error"
                     or "overloaded_error",
    headers = err.headers,
  }
end


local function too_late(err)
  return {
    status = err.status,
    message = "The request did not arrive in time: " .. err.message .. ".",
    type = "invalid_request_error",
    anthropic_type = "invalid_request_error",
  }
end


-- @return nil, or how to answer because there is no room for the body, as
-- answers.error wants it
function M.lacks_room(asked)
  local lacking = reading.take_room(asked, upload_room.size())

  return lacking and too_large(lacking)
end


-- @param read called with what is known of the request; may wait for the body
-- @return its two results; nil and how to answer where the body did not come
function M.read(asked, read)
  local call = kong.ctx.plugin
  call.is_reading = true
  local ok, result, err = pcall(read, asked)
  call.is_reading = nil
  if not ok and result ~= reading.LATE then
    error(result, 0)
  elseif not ok then
    return nil, too_late(result)
  end
  reading.rest(asked)

  return result, err
end


-- Reads the request unless a plugin in front has, or it cannot be read.
-- @return nil, or how to answer
function M.once(asked)
  local expected = reading.expected_body(asked.api)
  if asked.found or not expected or reading.is_encoded() then
    return nil
  end

  kong.ctx.plugin.has_read = true
  local lacking = M.lacks_room(asked)
  if lacking then
    return lacking
  end

  local _, err = M.read(asked, expected == "json" and reading.read_json
                               or reading.read_form)

  return err
end


-- Something else than its body is waited for, before the call comes to
-- llm-audit.
-- @param is_on whether it begins or ends
function M.hold(asked, is_on)
  asked.is_reading = is_on or nil
  kong.ctx.plugin.is_reading = is_on or nil
end


-- In `log`: where the client went away while this plugin waited for the body,
-- Kong comes to no phase of llm-audit.
function M.log(asked)
  if asked.is_reading and kong.ctx.plugin.is_reading
    and kong.configuration.loaded_plugins["llm-audit"]
  then
    require("kong.plugins.llm-audit.handler").log_unreached()
  end
  reading.close(asked)
  reading.leave(asked)
end


-- In `log` of a plugin that used M.once or M.hold.
function M.log_once(asked)
  if kong.ctx.plugin.has_read or kong.ctx.plugin.is_reading then
    M.log(asked)
  end
end


return M
