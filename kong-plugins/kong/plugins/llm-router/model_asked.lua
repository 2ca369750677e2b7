-- Finds the model that a request names, and gives it another name.
--
-- JSON: the outermost member `model`, the last of repeated ones, as
-- llm_gateway.request reads it. Forms of the audio APIs: the field `model`, see
-- llm_gateway.form.
--
-- A request to an API that is known has to name a model. One to another path
-- (the operator opened it) may: with JSON in which there is one it is a request
-- like all others, everything else goes to the service's address.

local answers = require "llm_gateway.answers"
local early_reading = require "llm_gateway.early_reading"
local form = require "llm_gateway.form"
local json_scan = require "llm_gateway.json_scan"
local reading = require "llm_gateway.reading"
local request = require "llm_gateway.request"

local byte = string.byte
local find = string.find
local kong = kong
local lower = string.lower
local sub = string.sub

local QUOTE = byte('"')

-- Stands for what is too long for a name, or no text: nobody has such a model.
local NO_NAME = "\0"

local M = {}


-- --- reading ----------------------------------------------------------------

local function missing()
  return answers.bad_request("You must provide a model; GET /v1/models lists "
                             .. "those that you may use.")
end


-- @param text of the member's value; nil when it is very long
-- @return the name, or nil and how to answer
local function name_of(text)
  if not text then
    return NO_NAME
  end
  if text == "null" or text == '""' then
    return nil, missing()
  end
  if byte(text) ~= QUOTE then
    return nil, answers.bad_request("The model must be a string.")
  end

  return json_scan.decode_string(sub(text, 2, -2)) or NO_NAME
end


local function is_json_type()
  local value = kong.request.get_header("Content-Type")

  return value ~= nil and find(lower(value), "^%s*application/[%w.+-]*json")
end


-- @return how to answer instead of reading the body
local function refusal(asked)
  local lacking = early_reading.lacks_room(asked)
  if lacking then
    return lacking
  end

  if reading.is_encoded() then
    return answers.bad_request(request.REASONS.encoded .. ".")
  end

  return nil
end


local function unreadable(reason)
  return answers.bad_request((request.REASONS[reason] or form.REASONS[reason])
                             .. ".")
end


local function read_json(asked)
  local found = reading.read_json(asked)
  local is_known = asked.api ~= "other"

  if found.unread then
    return nil, unreadable(found.unread)
  end
  if not found.is_json then
    return nil, is_known and answers.bad_request("The body is no JSON object.")
                or nil
  end

  local member = found.model
  if not member then
    return nil, is_known and missing() or nil
  end

  return name_of(member.text)
end


local function read_form(asked)
  local found = reading.read_form(asked)
  if not found then
    return nil, answers.bad_request("The body is no multipart form.")
  end
  if found.unread then
    return nil, unreadable(found.unread)
  end

  local text = found.model and found.model.text or ""
  if text == "" then
    return nil, missing()
  end

  return text
end


-- @return what reads the body; nil where there is nothing to be read
local function reader_of(api)
  local expected = reading.expected_body(api)
  if expected == "form" then
    return read_form
  end

  return (expected == "json" or is_json_type()) and read_json or nil
end


-- @return the name that the request gives; nil and how to answer; nil twice for
-- a request that needs none
function M.read(asked)
  local read = kong.request.get_method() == "POST" and reader_of(asked.api)
  if not read then
    return nil
  end

  local err = refusal(asked)
  if err then
    return nil, err
  end

  return early_reading.read(asked, read)
end


-- --- another name -----------------------------------------------------------

-- Each member of that name gets the new one: a server that goes by the first
-- of repeated keys must not find another model there.
local function changes_of_json(member, name)
  local text = answers.quote(name)
  local is_repeated = member.earlier ~= nil
  local changes = {}

  while member do
    local is_same = member.text == text
                    or not is_repeated and name_of(member.text) == name
    if not is_same then
      changes[#changes + 1] = { from = member.from, to = member.to,
                                text = text }
    end
    member = member.earlier
  end

  return changes[1] and changes
end


local function changes_of_form(field, name)
  return field.text ~= name
         and { { from = field.from, to = field.to, text = name } } or nil
end


-- @param name that the request gives
-- @param served_as the name that the server knows the model by
-- @return nil, or how to answer because the body could not be changed
function M.rename(asked, name, served_as)
  local found = asked.found
  if name == served_as and not found.model.earlier then
    return nil
  end

  local changes_of = found.is_form and changes_of_form or changes_of_json
  local changes = changes_of(found.model, served_as)
  local failed = changes and reading.change(asked, changes)
  if not failed then
    return nil
  end

  kong.log.err(failed.err)

  return { status = failed.status, message = failed.message .. ".",
           type = "server_error", anthropic_type = "api_error" }
end


return M
