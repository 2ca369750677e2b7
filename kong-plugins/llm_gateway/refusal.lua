-- How a plugin in front of the model server answers in its place.

local answers = require "llm_gateway.answers"
local apis = require "llm_gateway.api"
local reading = require "llm_gateway.reading"

local kong = kong
local ngx = ngx

local M = {}


-- Ends the call.
function M.answer(status, body, headers)
  headers = headers or {}
  headers["Content-Type"] = "application/json"

  return kong.response.exit(status, body, headers)
end


-- Ends the call with an error in the shape of the caller's SDK.
-- @param asked what is known of the request, see llm_gateway.reading
-- @param by what stands in the entry as `refused_by`
-- @param err as answers makes it; may have headers
function M.send(asked, by, err)
  asked.refused_by = by
  local is_anthropic = apis.is_anthropic(reading.api_of(asked))
                       or asked.api == "models" and asked.is_anthropic

  return M.answer(err.status, answers.error(is_anthropic, err,
                                            ngx.var.kong_request_id),
                  err.headers)
end


return M
