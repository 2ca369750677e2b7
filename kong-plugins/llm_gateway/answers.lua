-- What a plugin answers in place of the model server, in the shape that the
-- SDK at the other end reads: OpenAI's, or Anthropic's on its own paths.
--
-- The JSON is put together here because cjson cannot tell an empty list from
-- an empty object, leaves no null where a value is missing, and escapes
-- slashes, with which half of all model names would be written otherwise than
-- people know them.

local byte = string.byte
local concat = table.concat
local find = string.find
local format = string.format
local gsub = string.gsub

local M = {}


local ESCAPES = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n",
                  ["\r"] = "\\r", ["\t"] = "\\t" }

local function escape_char(char)
  return ESCAPES[char] or format("\\u%04x", byte(char))
end


-- @param text that is UTF-8
-- @return it as it stands between the quotes of a JSON string
function M.escape(text)
  return (gsub(text, '[%c"\\]', escape_char))
end


-- @return the text as a JSON string; null for nil
function M.quote(text)
  return text and '"' .. M.escape(text) .. '"' or "null"
end

local quote = M.quote


-- @param err table: type and code (nil: null) as OpenAI has them,
-- anthropic_type
-- @return what stands before and behind the escaped message of an error
function M.frame(is_anthropic, err, request_id)
  if is_anthropic then
    return '{"type":"error","error":{"type":' .. quote(err.anthropic_type)
           .. ',"message":"', '"},"request_id":' .. quote(request_id) .. "}"
  end

  return '{"error":{"message":"', '","type":' .. quote(err.type)
         .. ',"param":null,"code":' .. quote(err.code) .. "}}"
end


-- @param err as M.frame takes it, with its message
-- @return the body of an error
function M.error(is_anthropic, err, request_id)
  local before, after = M.frame(is_anthropic, err, request_id)

  return before .. M.escape(err.message) .. after
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
