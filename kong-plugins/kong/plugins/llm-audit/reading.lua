-- Reads the request of a call, in the access phase: which API, which model,
-- whether a stream is asked for; keeps what goes into the log entry, and sees
-- to it that streams report their usage.
--
-- What cannot be read in one way only is refused, or, where the gateway is not
-- strict, let pass and marked: see llm_gateway.request for what that is.

local apis = require "llm_gateway.api"
local estimate = require "kong.plugins.llm-audit.estimate"
local forwarded = require "kong.plugins.llm-audit.forwarded"
local gate = require "kong.plugins.llm-audit.gate"
local request = require "llm_gateway.request"
local request_body = require "kong.plugins.llm-audit.request_body"
local request_text = require "kong.plugins.llm-audit.request_text"
local stored_responses = require "kong.plugins.llm-audit.stored_responses"

local error = error
local find = string.find
local kong = kong
local lower = string.lower
local max = math.max
local min = math.min
local ngx = ngx
local pcall = pcall
local type = type

-- A large body is looked at in so many pieces before other calls get a turn.
local PIECES_A_TURN = 4

-- What a turn, and a MiB of a body that is made short, may take.
local TURN_SECONDS = 0.004
local SHORTEN_SECONDS_PER_MIB = 0.008

-- Not 0: nginx without OpenResty's patch complains about that. And no longer
-- than nobody notices, however many large bodies there are.
local SHORTEST_WAIT_SECONDS = 0.001
local LONGEST_WAIT_SECONDS = 0.1

-- Of larger ones the head is kept: what else would be takes all of it to tell.
local MAX_SHORTEN_BYTES = 67108864
local MIB = 1048576

-- APIs that report the usage of a stream only when asked.
local ASKED_FOR_USAGE = { chat = true, completions = true }

local M = {}


-- @return the API that the call uses; also where access did not run
function M.api_of(call)
  if not call.api then
    call.api = apis.of_path(forwarded.path())
  end

  return call.api
end


-- When this worker may do the next piece of long work.
local next_turn = 0


-- Lets events of other calls pass before a piece of work. Timers that expire
-- together run one after the other with nothing in between, so each piece gets
-- a time of its own.
-- @param seconds that the work may take
local function await_turn(seconds)
  local now = ngx.now()
  local at = min(max(now, next_turn), now + LONGEST_WAIT_SECONDS)
  next_turn = at + seconds

  ngx.sleep(max(at - now, SHORTEST_WAIT_SECONDS))
end


local function has_header_word(name, word)
  local value = kong.request.get_header(name)
  return value ~= nil and find(lower(value), word, 1, true) ~= nil
end


local function is_encoded()
  local value = kong.request.get_header("Content-Encoding")
  return value ~= nil and value ~= "" and lower(value) ~= "identity"
end


-- @return whether the body should be JSON
local function expects_json(api)
  return api ~= "other" and api ~= "models"
         and not has_header_word("Content-Type", "multipart/form-data")
end


-- HTTP/2 and later may carry a body without telling its length, which nginx's
-- Lua module refuses to read.
local function hides_length()
  return kong.request.get_http_version() >= 2
         and not request_body.declared_size()
         and not find(forwarded.path(), "/cancel/?$")
end


-- @return what the body asks for
local function read_body(body, asks_usage)
  local reader = request.new(asks_usage)
  local pieces = 0

  for piece in body:pieces() do
    if pieces == PIECES_A_TURN then
      await_turn(TURN_SECONDS)
      pieces = 0
    end
    reader:feed(piece)
    pieces = pieces + 1
  end

  return reader:finish(body.size)
end


-- @return how to answer instead of the server, if that is to be
local function refusal(conf, reason)
  if not reason or not conf.strict_requests then
    return nil
  end

  return { status = reason == "no_length" and 411 or 400,
           message = request.REASONS[reason] }
end


-- @return a refusal when that failed: then the body is in pieces
local function change(body, changes)
  local ok, err = pcall(body.change, body, changes)
  if not ok then
    return { status = 500, message = "the request could not be handed on",
             err = err }
  end
end


local function open_body(call)
  -- nginx ends a call whose client goes away while its body is read: what
  -- stands behind the read never runs, and neither does http-log, which Kong
  -- had not come to. `log` has to know.
  call.is_reading = true
  local ok, body, err = pcall(request_body.open)
  call.is_reading = nil
  if not ok then
    error(body)
  end
  if not body then
    error(err)
  end
  call.request_bytes = body.size
  gate.settle(call, body.size)

  return body
end


-- Keeps what goes into the entry.
-- @param is_refused whether nobody will answer: then the head does, and no
-- work is spent on it
local function keep_body(conf, call, body, is_refused)
  local keep = conf.capture == "full" and conf.max_request_body_size or 0

  if keep == 0 then
    call.request_body = ""
  elseif body.size <= keep or is_refused then
    call.request_body = body:read(1, keep)
  else
    if body.size > MIB then
      await_turn(min(body.size, MAX_SHORTEN_BYTES) / MIB
                 * SHORTEN_SECONDS_PER_MIB)
    end
    local whole = body:read(1, MAX_SHORTEN_BYTES)
    call.request_body = request_text.shorten(whole, keep)
  end
end


-- Opens the body only to keep it.
local function note_body(conf, call)
  local body = open_body(call)
  keep_body(conf, call, body)
  body:close()
end


-- @return refusal, and what was not read
local function read_json(conf, call, api, is_coded)
  if hides_length() then
    return refusal(conf, "no_length"), "no_length"
  end

  local body = open_body(call)
  local found = read_body(body, conf.include_usage and ASKED_FOR_USAGE[api])
  call.is_json = found.is_json
  call.model_asked = found.model_asked
  call.stream_asked = found.stream_asked
  call.text_bytes = found.text_bytes

  local answer = refusal(conf, found.unread)
  if not answer and api == "responses" and found.previous_response_id then
    answer = stored_responses.refusal(found.previous_response_id)
  end
  keep_body(conf, call, body, answer ~= nil)
  if found.changes and not answer and not is_coded then
    answer = change(body, found.changes)
    call.removes_usage = not answer and found.asks_usage
  end
  body:close()

  return answer, found.unread
end


local function read_post(conf, call, api)
  -- stays when the body cannot be had at all
  call.unread = "not_read"
  call.expects_json = expects_json(api)

  local is_coded = is_encoded()
  local answer = refusal(conf, is_coded and "encoded")
  local unread

  if not answer and call.expects_json then
    answer, unread = read_json(conf, call, api, is_coded)
  elseif not answer then
    note_body(conf, call)
  end

  call.unread = not answer and (is_coded and "encoded" or unread) or nil

  return answer
end


-- What is no POST has no body that a model reads.
local function read_other(conf, call, api)
  if api == "responses" then
    local stream = kong.request.get_query_arg("stream")
    call.stream_asked = type(stream) == "string"
                        and request.is_true_word(stream)
  end

  if conf.capture == "full" and conf.max_request_body_size > 0
    or not request_body.declared_size()
  then
    note_body(conf, call)
  end
end


-- @return nil, or how to answer instead of the server: { status, message, err }
function M.read(conf, call)
  local api = M.api_of(call)
  if kong.request.get_method() == "POST" then
    return read_post(conf, call, api)
  end

  return read_other(conf, call, api)
end


-- @return what measures the answer as it passes, for calls of which the server
-- may report no tokens; nil where there is nothing to be measured
function M.new_meter(call, status)
  if not call.is_json or call.is_encoded or status < 200 or status > 299
    or kong.response.get_source() ~= "service"
  then
    return nil
  end

  return estimate.new(call.api, call.stream)
end


-- @return why nobody could tell what was asked; nil where it was read, and
-- where the server could not read it either
local function unread_reason(call, status)
  if call.unread then
    return call.unread
  end

  if call.expects_json and not call.is_json and call.request_bytes ~= 0
    and status < 400
  then
    return "not_json"
  end

  return nil
end


-- Whether the client went away while the server was at work on the answer.
local function is_abandoned(call, status)
  local server = status == 499 and ngx.var.upstream_addr

  return call.is_json and server and server ~= ""
end


-- Puts into the entry what is known of the request, and an estimate of its
-- tokens if the server reported none, neither here nor before.
function M.describe(call, llm, status)
  llm.api = M.api_of(call)
  llm.model_asked = call.model_asked
  llm.stream_asked = call.stream_asked
  llm.unread = unread_reason(call, status)

  if not llm.usage and not llm["repeat"]
    and (call.meter or is_abandoned(call, status))
  then
    llm.estimated = estimate.of(call.api, call.text_bytes, call.meter)
  end
end


return M
