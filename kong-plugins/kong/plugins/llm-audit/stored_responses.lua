-- Stored responses of /v1/responses: only the user who made one may use it, and
-- its tokens are counted once.
--
-- A response may be fetched any number of times, and every answer repeats its
-- usage. The tokens are counted with the first call that reports them:
-- the POST, or, where it went on in the background or its client hung up, the
-- first that fetches it finished. Entries of all others say `llm.repeat`.
--
-- Invariants
--   What the answer says is read by its structure (see reported), never found
--   by its text, which a client can choose in part.
--   Whoever takes the count tells it in `llm.usage`: with a body that is cut or
--   left out later, it would be lost.
--   Only who reports more than zero takes it, and only of a response that is
--   finished: counts of one in progress may grow. Entries of others say
--   `llm.repeat`, too: nobody has to miss their usage.
--
-- Not here: who is first (response_owners), answers with Content-Encoding. They
-- do not take the count, and repeat it once it is taken.

local forwarded = require "llm_gateway.forwarded"
local reading = require "llm_gateway.reading"
local reported = require "kong.plugins.llm-audit.reported"
local response_owners = require "kong.plugins.llm-audit.response_owners"
local route = require "llm_gateway.route"

local find = string.find
local format = string.format
local kong = kong
local match = string.match
local ngx = ngx

-- Longer bodies are read by their ends: reading this one takes some
-- milliseconds.
local MAX_WHOLE_BYTES = 1048576

-- In the path of every call that has to do with stored responses. A look for
-- it is less work for all others than the patterns are.
local RESPONSES = "/v1/responses"

-- What a response is as long as more comes.
local UNFINISHED = { queued = true, in_progress = true }

local owners = response_owners.new(ngx.shared.llm_gateway)

local M = { owners = owners }


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


-- @return the id in the path, nil where there is none
local function id_of(path)
  return find(path, RESPONSES, 1, true)
         and match(path, RESPONSES .. "/([^/]+)") or nil
end


-- @param id of a response that the caller wants to have or to continue
-- @return nil, or how to answer: { status, headers, body or message }
function M.refusal(id)
  local caller = reading.caller()
  if owners:is_of(id, caller) then
    return nil
  end

  if not owners:number_of(id) and owners:ask(id, caller) then
    return {
      status = 503,
      headers = { ["Retry-After"] = "2" },
      message = "It is not known yet whose response this is; ask again",
    }
  end

  return not_found(id)
end


-- @return nil, or how to answer a call whose path has the id of a response
function M.refusal_of_path(path)
  local id = id_of(path)

  return id and M.refusal(id) or nil
end


-- @return whether an answer with this status may have made a response
local function makes_response(status, path)
  return status == 200 and find(path, RESPONSES, 1, true)
         and find(path, RESPONSES .. "/?$") ~= nil
         and kong.request.get_method() == "POST"
end


-- @return told(chunk), which notes what the answer says of its id
local function id_watcher(call)
  local user = reading.caller()
  local read = response_owners.id_reader()

  return function(chunk)
    if read then
      local found, goes_on = read(chunk)
      if found then
        call.response_number = owners:note(found, user)
        route.note_response(reading.of_call(), found)
      end
      read = goes_on and read
    end
  end
end


-- Notes in the call what it takes to tell whose tokens the answer has.
-- @param keeps_ends whether the call's own capture keeps what reported reads;
-- else call.ends is to keep it
-- @return seen(chunk), to be called with the answer's chunks; nil where there
-- is nothing to be seen
function M.watch(call, status, content_type, content_encoding, keeps_ends)
  local path = call.path or forwarded.path()
  local id = id_of(path)
  if id and status >= 200 and status <= 299 then
    call.response_number = owners:number_of(id)
    if not call.response_number or owners:is_counted(call.response_number) then
      return nil
    end
  elseif id or not makes_response(status, path) then
    return nil
  end

  if content_encoding then
    return nil
  end

  if not keeps_ends then
    call.ends = reported.capture(status, content_type)
  end

  return not id and id_watcher(call) or nil
end


-- @return a body of which all was kept, for reported to read
local function whole(content)
  return {
    ends = function()
      return content
    end,
  }
end


local function has_tokens(usage)
  return (usage.prompt_tokens or usage.input_tokens or 0) > 0
         or (usage.completion_tokens or usage.output_tokens or 0) > 0
end


-- Puts into the entry whether the tokens of the answer were counted before.
-- @param content what was kept of the answer, if anything was
-- @param is_whole whether the end of the answer was seen
function M.describe(call, llm, content, is_whole)
  local number = call.response_number
  if not number then
    return
  end

  if owners:is_counted(number) then
    llm["repeat"] = true
    return
  end

  if call.ends then
    local has_all = content and not llm.response_truncated
                    and #content <= MAX_WHOLE_BYTES
    local body = has_all and whole(content) or call.ends
    local answer = reported.read(body, call.stream, is_whole)
    llm.usage = answer.usage
    call.response_status = answer.status
  end

  local counts = llm.usage and has_tokens(llm.usage)
  local status = call.response_status
  if UNFINISHED[status] or status == "cancelled" and not counts
    or counts and not owners:count(number)
  then
    llm["repeat"] = true
  end
end


return M
