-- Puts into Kong's log entry what http-log does not know: both bodies, the
-- time to the first byte, true sizes, whether the answer came to its end, and
-- a number by which a lost entry is noticed. On the way it sees to it that
-- streamed answers report their usage, and that errors which Kong makes have
-- the shape that SDKs understand.
--
-- Invariants
--   A call never fails and never waits because of this plugin: every phase
--   runs guarded, and nothing here opens a connection.
--   An event of a stream leaves in the same call in which it came.
--   What is kept of a call is bounded by its settings and let go in `log`.
--   A number of `seq` is given away when its entry enters the queue, or finds
--   it full, and never else (sequence.lua, log_queue.lua).
--
-- Not here: sending the entry (http-log does), keeping its queue alive
-- (log_queue.lua), telling the collector what no entry can (sync.lua), bounding
-- what refused calls leave (refused.lua), reading what the bodies mean
-- (the collector), removing keys from headers (key-auth and the collector).
--
-- Phases that may be missing: `access` does not run for calls that match no
-- route or that another plugin refused; then there is no request body. Headers
-- and body filters do not run when the client goes before the answer.

local capture = require "kong.plugins.llm-audit.capture"
local entry_bodies = require "kong.plugins.llm-audit.entry_bodies"
local error_plan = require "kong.plugins.llm-audit.error_plan"
local errors = require "kong.plugins.llm-audit.errors"
local forwarded = require "llm_gateway.forwarded"
local gate = require "kong.plugins.llm-audit.gate"
local guard = require "llm_gateway.guard"
local log_queue = require "kong.plugins.llm-audit.log_queue"
local reading = require "kong.plugins.llm-audit.reading"
local refused = require "kong.plugins.llm-audit.refused"
local reported = require "kong.plugins.llm-audit.reported"
local request_body = require "llm_gateway.request_body"
local route = require "llm_gateway.route"
local sequence = require "kong.plugins.llm-audit.sequence"
local shared_reading = require "llm_gateway.reading"
local stored_responses = require "kong.plugins.llm-audit.stored_responses"
local stream_capture = require "kong.plugins.llm-audit.stream_capture"
local sync = require "kong.plugins.llm-audit.sync"
local upload_room = require "llm_gateway.upload_room"
local usage_filter = require "kong.plugins.llm-audit.usage_filter"

local new_table = require "table.new"

local concat = table.concat
local find = string.find
local floor = math.floor
local kong = kong
local lower = string.lower
local max = math.max
local ngx = ngx
local now = ngx.now
local pcall = pcall
local require = require
local tonumber = tonumber

-- Above http-log (12), whose entry we complete, and prometheus (13) and
-- opentelemetry (14), which use the same entry. Below everything that may
-- still change or refuse a call: what we see is what is sent.
local PRIORITY = 15

local LLM_VERSION = 1

local LlmAudit = {
  PRIORITY = PRIORITY,
  VERSION = "0.2.0",
}

-- A table that grows is filled anew each time, so what is known of a call has
-- room from the beginning.
local CALL_FIELDS = 16


-- @return what this plugin knows of the call at hand
local function call_at_hand()
  local own = kong.ctx.plugin
  local call = own.call
  if not call then
    call = new_table(0, CALL_FIELDS)
    own.call = call
  end

  return call
end


local function init_worker()
  if not sequence.start() then
    kong.log.warn("the shared dict llm_gateway has no place for this worker: ",
                  "what it loses when it is killed stays unseen")
  end

  local found, module = pcall(require, "kong.tools.queue")
  local ok, err = log_queue.install(found and module)
  if not ok then
    kong.log.warn("the queue of log entries is as Kong has it, and breaks ",
                  "when it overflows: ", err)
  end

  sync.start()
end


-- llm-router reads bodies, too, and in front of this plugin: of several
-- settings the most generous holds for it.
local function configure(_, configs)
  upload_room.allow_most(configs or {})
  request_body.allow_longest(configs or {})
end


local function access(_, conf)
  local call = call_at_hand()
  sync.begin_call()
  call.in_flight = true

  local asked = shared_reading.of_call()
  call.asked = asked
  route.confirm(asked)

  call.path = forwarded.path()

  local refusal = gate.refusal(conf, asked, call.path)
  if refusal then
    return refusal
  end

  return reading.read(conf, call, asked)
end


local function is_event_stream(content_type)
  return content_type ~= nil
         and find(lower(content_type), "text/event-stream", 1, true) == 1
end


local function header_filter(_, conf)
  local call = call_at_hand()
  local header = ngx.header
  -- Not there where access did not run.
  call.asked = call.asked or shared_reading.of_call()
  if call.asked.is_late then
    kong.response.set_status(408)
  end
  local status = kong.response.get_status()
  local content_type = header["Content-Type"]
  local content_length = tonumber(header["Content-Length"])
  local encoding = header["Content-Encoding"]
  local stream = is_event_stream(content_type)

  call.stream = stream
  call.is_encoded = encoding ~= nil
  call.watch = stored_responses.watch(call, status, content_type, encoding,
                                      conf.capture ~= "full")
  call.meter = reading.new_meter(call, status)
  -- What is encoded can only be read from its beginning.
  local new_capture = stream and not call.is_encoded and stream_capture.new
                      or capture.new
  call.response = conf.capture == "full"
                  and new_capture(conf.max_response_body_size)
                  or reported.capture(status, content_type, encoding)
  -- With bodies the collector reads what was reported, unless it matters here.
  if call.asked.wants_usage and conf.capture == "full" and not call.ends then
    call.ends = reported.capture(status, content_type, encoding)
  end

  local plan = error_plan.of(conf, status, content_type, content_length)
  if plan then
    content_length = plan.length
    kong.response.set_header("Content-Type", "application/json")
    if content_length then
      kong.response.set_header("Content-Length", content_length)
    else
      kong.response.clear_header("Content-Length")
    end
    call.error_plan = plan
    if plan.is_final then
      kong.response.set_header("x-should-retry", "false")
    end

  elseif call.removes_usage and stream and not encoding then
    content_length = nil
    kong.response.clear_header("Content-Length")
    call.filter = usage_filter.new()
  end

  call.content_length = content_length
end


local function has_no_body()
  local status = kong.response.get_status()

  return status < 200 or status == 204 or status == 304
         or kong.request.get_method() == "HEAD"
end


local function see(call, chunk)
  if chunk == "" then
    return
  end

  if not call.first_byte_at then
    -- nginx takes the time when an event wakes it, which is when the bytes
    -- came: fresh enough, and cheaper than asking the clock again.
    call.first_byte_at = now()
  end

  call.response:put(chunk)
  if call.ends then
    call.ends:put(chunk)
  end

  if call.meter then
    call.meter:put(chunk)
  end

  if call.watch then
    call.watch(chunk)
  end
end


local function replace_error(call, arg, chunk, eof)
  local plan = call.error_plan

  if not plan.body and chunk ~= "" and not plan.too_large then
    local parts = plan.parts or {}
    plan.parts = parts
    parts[#parts + 1] = chunk
    plan.kept = (plan.kept or 0) + #chunk
    plan.too_large = plan.kept > errors.MAX_ORIGINAL_BYTES
  end

  if not eof or call.eof or has_no_body() then
    arg[1] = nil
    return
  end

  local parts = not plan.too_large and plan.parts
  local body = errors.finish(plan, parts and concat(parts))

  arg[1] = body
  see(call, body)
end


local function body_filter()
  local call = call_at_hand()
  local arg = ngx.arg
  local chunk, eof = arg[1] or "", arg[2]

  if not call.response then
    return
  end

  if call.error_plan then
    replace_error(call, arg, chunk, eof)

  else
    see(call, chunk)

    local filter = call.filter
    if filter then
      local out = chunk ~= "" and filter:push(chunk) or ""
      if eof then
        out = out .. filter:finish()
      end

      if out ~= chunk then
        arg[1] = out ~= "" and out or nil
      end
    end
  end

  call.eof = call.eof or eof
end


-- The filter holds back at most the beginning of one event. When something
-- fails, the client gets it with the chunk as it came.
local function pass_held_bytes()
  local call = call_at_hand()
  local filter = call.filter
  call.filter = nil

  local held = filter and filter:finish() or ""
  if held ~= "" then
    ngx.arg[1] = held .. (ngx.arg[1] or "")
  end
end


local function is_complete(call)
  local response = call.response
  if not response then
    return false
  end

  return call.eof or has_no_body()
         or call.content_length ~= nil
            and response.size >= call.content_length
end


local function time_to_first_byte(call)
  if not call.first_byte_at then
    return nil
  end

  local elapsed = call.first_byte_at * 1000 - kong.request.get_start_time()

  -- whole milliseconds, as the clock has them; never negative, even if the
  -- clock was set back
  return max(0, floor(elapsed + 0.5))
end


-- Read what the server reported, guarded on their own: a fault in there must
-- not cost the entry. Set below.
local read_reported, describe_stored


local function log(call, conf)
  local response = call.response
  local is_full = conf.capture == "full"
  local set_value = kong.log.set_serialize_value

  if call.in_flight then
    call.in_flight = nil
    sync.end_call()
  end

  local status = kong.response.get_status()
  local asked = call.asked or shared_reading.of_call()
  local refusal = refused.look(conf, status, asked)
  if refusal == "counted" or not refusal and conf.capture == "none" then
    log_queue.expect({ kept_out = true })
    return
  end
  if refusal then
    refused.shorten(refusal)
  end

  local request = call.request_body
  local request_bytes = asked.request_bytes or request_body.declared_size() or 0
  local content, answer

  if is_full then
    content = response and response:content()
    answer = asked.wants_usage and call.ends and read_reported(call, call.ends)
  elseif response then
    answer = read_reported(call, response)
  end

  local llm = {
    v = LLM_VERSION,
    stream = call.stream or false,
    ttft_ms = time_to_first_byte(call),
    request_bytes = request_bytes,
    response_bytes = response and response.size or 0,
    request_truncated = is_full and request ~= nil
                        and #request < request_bytes,
    response_truncated = is_full and response ~= nil
                         and response:is_truncated(),
    response_left_out = is_full and response ~= nil and response:left_out()
                        or nil,
    aborted = not is_complete(call),
    seq = sequence.next(),
    worker = sequence.worker(),
  }

  if answer then
    llm.model = answer.model
    llm.usage = answer.usage
    call.response_status = answer.status
    -- An SDK may hang up at the last event, before the last byte; a server that
    -- dies may end the body in good order. With bodies the collector sees that.
    -- Without that event it is whole where every choice said why it ended.
    if answer.ended ~= nil and not is_full then
      llm.aborted = not answer.ended
                    and (llm.aborted or not answer.finished)
    end
  end

  if asked.is_reading then
    -- Its client went away, and no server got it: nothing passed unread.
    call.unread = nil
  end
  if call.response_number then
    describe_stored(call, llm, content)
  end
  reading.describe(call, asked, llm, status)
  set_value("llm", llm)

  request = is_full and request ~= "" and request or nil
  local entry = entry_bodies.new(llm.seq, refusal == "anonymous", request,
                                 content, call.is_encoded)
  if asked.limited then
    entry.limited, entry.llm = asked.limited, llm
    entry.hides_usage = call.is_encoded or call.meter and call.meter.has_usage
  end
  entry_bodies.set(entry, asked.is_reading)
  if asked.is_reading then
    log_queue.add_alone(entry, llm)
  else
    log_queue.expect(entry)
  end
end


local function release(call)
  if call.response then
    call.response:free()
  end
  if call.ends then
    call.ends:free()
  end

  shared_reading.leave(call.asked or shared_reading.of_call())
  kong.ctx.plugin.call = nil
end


local guarded = guard.new(function(line)
  kong.log.err(line)
end, now)

LlmAudit.init_worker = guarded("init_worker", init_worker)
LlmAudit.configure = guarded("configure", configure)

-- A call that is refused ends here, outside of the guard: what Kong does to
-- that end is no error.
local read_request = guarded("access", access)

function LlmAudit:access(conf)
  -- What is no call to a model has nothing to be read.
  local refusal = conf.capture ~= "none" and read_request(self, conf)
  if not refusal then
    return nil
  end

  if refusal.err then
    kong.log.err(refusal.err)
  end

  return kong.response.exit(refusal.status,
                            refusal.body or { message = refusal.message },
                            refusal.headers)
end

LlmAudit.header_filter = guarded("header_filter", header_filter)
LlmAudit.body_filter = guarded("body_filter", body_filter, pass_held_bytes)

read_reported = guarded("log", function(call, body)
  return reported.read(body, call.stream, is_complete(call))
end)

describe_stored = guarded("log", function(call, llm, content)
  stored_responses.describe(call, llm, content, is_complete(call))
end)

-- For a plugin in front of this one, while whose access the client went away:
-- then Kong comes to no phase of this one. What is known goes into the entry.
LlmAudit.log_unreached = guarded("log", function()
  log(call_at_hand(), { capture = "metadata", anonymous_per_minute = 0,
                        refused_per_minute = 0 })
end)

-- What was kept is let go even when the entry could not be made.
LlmAudit.log = guarded("log", function(_, conf)
  local call = call_at_hand()
  log(call, conf)
  release(call)
end, function()
  release(call_at_hand())
end)


return LlmAudit
