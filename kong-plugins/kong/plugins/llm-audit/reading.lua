-- What llm-audit does with the request of a call, in the access phase: keeps
-- what goes into the log entry, and sees to it that streams report their usage.
-- What the request asks for is read once for all plugins, see
-- llm_gateway.reading.
--
-- What cannot be read in one way only is refused, or, where the gateway is not
-- strict, let pass and marked: see llm_gateway.request for what that is.

local estimate = require "kong.plugins.llm-audit.estimate"
local form = require "llm_gateway.form"
local request = require "llm_gateway.request"
local request_body = require "llm_gateway.request_body"
local request_text = require "kong.plugins.llm-audit.request_text"
local route = require "llm_gateway.route"
local shared_reading = require "llm_gateway.reading"
local stored_responses = require "kong.plugins.llm-audit.stored_responses"

local error = error
local find = string.find
local kong = kong
local ngx = ngx
local pcall = pcall
local type = type

-- Of larger ones the head is kept: what else would be takes all of it to tell.
local MAX_SHORTEN_BYTES = 67108864

-- APIs that report the usage of a stream only when asked.
local ASKED_FOR_USAGE = { chat = true, completions = true }

local NOTHING_FOUND = {}

local M = {}


-- @return how to answer instead of the server, if that is to be
local function refusal(conf, reason)
  if not reason or not conf.strict_requests then
    return nil
  end

  return { status = 400,
           message = request.REASONS[reason] or form.REASONS[reason] }
end


-- Keeps what goes into the entry.
-- @param is_refused whether nobody will answer: then the head does, and no
-- work is spent on it
local function keep_body(conf, call, asked, is_refused)
  local body = asked.body
  local keep = conf.capture == "full" and conf.max_request_body_size or 0

  if keep == 0 then
    call.request_body = ""
  elseif body.size <= keep or is_refused then
    call.request_body = body:read(1, keep)
  else
    local whole = shared_reading.text(asked, MAX_SHORTEN_BYTES)
    call.request_body = request_text.shorten(whole, keep,
                                             shared_reading.await_turn)
    shared_reading.end_turn()
  end
end


-- Opens the body only to keep it.
local function note_body(conf, call, asked)
  shared_reading.open(asked)
  keep_body(conf, call, asked)
  shared_reading.close(asked)
end


-- Asks for the usage of a stream, and takes out what no client may set.
local function change(conf, call, asked)
  local found = asked.found
  local usage = conf.include_usage and ASKED_FOR_USAGE[asked.api]
                and request.usage_changes(found)
  local answer = shared_reading.change(asked, request.merge(found.changes,
                                                            usage or nil))
  call.removes_usage = not answer and usage and true or nil

  return answer
end


-- @return refusal, and what was not read
local function read_body(conf, call, asked, is_coded)
  shared_reading.open(asked)
  local found = call.expects == "form" and shared_reading.read_form(asked)
                or call.expects == "json" and shared_reading.read_json(asked)
                or {}

  local answer = refusal(conf, found.unread)
  if not answer and asked.api == "responses" and found.previous_response_id then
    answer = stored_responses.refusal(found.previous_response_id)
  end
  keep_body(conf, call, asked, answer ~= nil)
  if not answer and not is_coded and found.is_json then
    answer = change(conf, call, asked)
  end
  shared_reading.close(asked)

  return answer, found.unread
end


local function read_post(conf, call, asked)
  -- stays when the body cannot be had at all
  call.unread = "not_read"
  call.expects = shared_reading.expected_body(asked.api)

  local is_coded = shared_reading.is_encoded()
  local answer = refusal(conf, is_coded and "encoded")
  local unread

  if not answer and call.expects then
    answer, unread = read_body(conf, call, asked, is_coded)
  elseif not answer then
    note_body(conf, call, asked)
  end

  call.unread = not answer and (is_coded and "encoded" or unread) or nil

  return answer
end


-- What is no POST has no body that a model reads.
local function read_other(conf, call, asked)
  if asked.api == "responses" then
    local stream = kong.request.get_query_arg("stream")
    call.stream_asked = type(stream) == "string"
                        and request.is_true_word(stream)
  end

  if conf.capture == "full" and conf.max_request_body_size > 0
    or not request_body.declared_size()
  then
    note_body(conf, call, asked)
  end
end


-- Servers undo such escapes, before or after they look for the API; here the
-- path would be that of another, or of none. Names of models have slashes.
local function is_odd_path(asked, path)
  return find(path, "%", 1, true) ~= nil and asked.api ~= "models"
         and (find(path, "%%2[5Ff]") or find(path, "%%5[Cc]")
              or find(path, "%00", 1, true)) ~= nil
end


local function read(conf, call, asked)
  local is_odd = is_odd_path(asked, call.path)
  local answer = refusal(conf, is_odd and "odd_path")
  if answer then
    return answer
  end

  if kong.request.get_method() == "POST" then
    answer = read_post(conf, call, asked)
  else
    answer = read_other(conf, call, asked)
  end
  call.unread = call.unread or is_odd and "odd_path" or nil

  return answer
end


-- @param asked what is known of the request, see llm_gateway.reading
-- @return nil, or how to answer instead of the server: { status, message, err }
function M.read(conf, call, asked)
  shared_reading.api_of(asked)
  request_body.set_seconds(conf.body_seconds)

  local ok, answer = pcall(read, conf, call, asked)
  if not ok then
    if type(answer) ~= "table" then
      error(answer, 0)
    end
    -- nobody got it, unread or not
    call.unread = nil
  end

  return answer
end


-- Whether the body was JSON.
local function is_json(asked)
  return asked.found ~= nil and asked.found.is_json
end


-- @return what measures the answer as it passes, for calls of which the server
-- may report no tokens; nil where there is nothing to be measured
function M.new_meter(call, status)
  local asked = call.asked
  if not is_json(asked) or call.is_encoded or status < 200 or status > 299
    or kong.response.get_source() ~= "service"
  then
    return nil
  end

  return estimate.new(asked.api, call.stream)
end


-- @return why nobody could tell what was asked; nil where it was read, and
-- where the server could not read it either
local function unread_reason(call, asked, status)
  if call.unread then
    return call.unread
  end

  local is_read = asked.found and (asked.found.is_json or asked.found.is_form)
  if call.expects and not is_read and asked.request_bytes ~= 0
    and status < 400
  then
    return "not_" .. call.expects
  end

  return nil
end


-- Whether the client went away while the server was at work on the answer.
local function is_abandoned(asked, status)
  local server = status == 499 and ngx.var.upstream_addr

  return is_json(asked) and server and server ~= ""
end


-- Puts into the entry what is known of the request, and an estimate of its
-- tokens if the server reported none, neither here nor before.
function M.describe(call, asked, llm, status)
  local found = asked.found or NOTHING_FOUND

  llm.api = shared_reading.api_of(asked)
  llm.model_asked = found.model_asked
  llm.stream_asked = found.stream_asked
  if call.stream_asked ~= nil then
    llm.stream_asked = call.stream_asked
  end
  llm.unread = unread_reason(call, asked, status)
  llm.backend = route.backend(asked)
  llm.refused_by = asked.refused_by
  llm.queue_ms = asked.queue_ms

  if not llm.usage and not llm["repeat"]
    and (call.meter or is_abandoned(asked, status))
  then
    llm.estimated = estimate.of(asked.api, found.text_bytes, call.meter)
  end
  if asked.on_llm then
    asked.on_llm(llm)
  end
end


return M
