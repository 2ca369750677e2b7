-- What a plugin answers in place of the model server, in the shape that the
-- SDK at the other end reads: OpenAI's, or Anthropic's on its own paths.
--
-- The JSON is put together here because cjson cannot tell an empty list from
-- an empty object, and leaves no null where a value is missing.

local cjson = require "cjson.safe"

local concat = table.concat
local find = string.find
local format = string.format
local gsub = string.gsub

local M = {}


-- @param text that is UTF-8
-- @return it as a JSON string
function M.quote(text)
  -- cjson escapes slashes, with which half of all model names would be
  -- written otherwise than people know them
  return (gsub(cjson.encode(text), "\\/", "/"))
end

local quote = M.quote


-- @param err table: message, type and code (nil: null) as OpenAI has them,
-- anthropic_type
-- @return the body of an error
function M.error(is_anthropic, err, request_id)
  if is_anthropic then
    return format('{"type":"error","error":{"type":%s,"message":%s},'
                  .. '"request_id":%s}', quote(err.anthropic_type),
                  quote(err.message), quote(request_id))
  end

  return format('{"error":{"message":%s,"type":%s,"param":null,"code":%s}}',
                quote(err.message), quote(err.type),
                err.code and quote(err.code) or "null")
end


-- The request asks for something that cannot be.
function M.bad_request(message)
  return { status = 400, message = message, type = "invalid_request_error",
           anthropic_type = "invalid_request_error" }
end


-- A model that is not there, or not for this caller.
-- @param name as it was asked for
function M.model_not_found(name)
  -- What is no ordinary name is not repeated: it need not be text.
  local shown = #name <= 200 and not find(name, "[^\32-\126]")
                and " `" .. name .. "`" or ""

  return {
    status = 404,
    message = "The model" .. shown
              .. " does not exist or you do not have access to it.",
    type = "invalid_request_error",
    code = "model_not_found",
    anthropic_type = "not_found_error",
  }
end


-- --- lists of models --------------------------------------------------------

-- Nobody told the gateway when a model was made. The SDKs want a time.
local EPOCH = "1970-01-01T00:00:00Z"


-- @return what tells of one model
function M.model(is_anthropic, model)
  local name = quote(model.name)
  if is_anthropic then
    return format('{"type":"model","id":%s,"display_name":%s,'
                  .. '"created_at":"%s"}', name, name, EPOCH)
  end

  return format('{"id":%s,"object":"model","created":0,"owned_by":"gateway"}',
                name)
end


-- @return the list of these models, all on one page
function M.models(is_anthropic, models)
  local parts = {}
  for i, model in ipairs(models) do
    parts[i] = M.model(is_anthropic, model)
  end
  local list = concat(parts, ",")

  if is_anthropic then
    local first, last = models[1], models[#models]
    return format('{"data":[%s],"has_more":false,"first_id":%s,"last_id":%s}',
                  list, first and quote(first.name) or "null",
                  last and quote(last.name) or "null")
  end

  return format('{"object":"list","data":[%s]}', list)
end


return M
