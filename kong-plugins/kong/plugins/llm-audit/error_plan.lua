-- Which errors of a call get another shape, and what is known of them before
-- their body is seen; see errors.

local apis = require "llm_gateway.api"
local errors = require "kong.plugins.llm-audit.errors"
local reading = require "llm_gateway.reading"

local find = string.find
local kong = kong
local ngx = ngx

local M = {}


-- @return the scheme of the Authorization header: "bearer", "other" or nil.
-- The pre-function removes a Bearer header, if it is there.
local function authorization_scheme()
  local value = kong.request.get_header("Authorization")
  if not value then
    return nil
  end

  return find(value, "^%s*[Bb][Ee][Aa][Rr][Ee][Rr]%s") and "bearer" or "other"
end


-- @return what to do with an error that Kong makes, nil for other responses
function M.of(conf, status, content_type, content_length)
  local asked = reading.of_call()
  -- Another plugin of ours has given its answer that shape.
  if not conf.openai_errors or status < 400 or asked.refused_by then
    return nil
  end

  local source = kong.response.get_source()
  if source == "service"
    or content_type and find(content_type, "application/grpc", 1, true) == 1
  then
    return nil
  end

  return errors.plan({
    status = status,
    source = source,
    method = kong.request.get_method(),
    path = kong.request.get_raw_path(),
    is_anthropic = apis.is_anthropic(reading.api_of(asked)),
    has_route = kong.router.get_route() ~= nil,
    authorization = authorization_scheme(),
    headers = kong.response.get_headers(),
    content_length = content_length,
    request_id = ngx.var.kong_request_id,
  })
end


return M
