-- Takes from an answer what the server reports about itself: the model and
-- the token counts. For capture = metadata, where no body reaches the
-- collector.
--
-- Invariants
--   Nothing else of the answer comes out: the model is a short string from the
--   place where the API has it, the usage is built anew from counts of known
--   names.
--   What was not reported, or not seen, is nil; nothing is guessed. Text that
--   merely looks like a usage is never taken for one: JSON is walked by its
--   structure, from the beginning, or from the end where the beginning is
--   missing (see json_tail).
--   No more than HEAD_BYTES and TAIL_BYTES of a body are kept or looked at.
--
-- Where the APIs have it (vLLM 0.32)
--   JSON: `model` in the head, behind the content in /v1/messages; `usage` at
--   the end, before the results in /v1/rerank.
--   Streams: the first event has the model, in /v1/messages also the input
--   tokens; the last or last but one the usage. In /v1/responses that event
--   repeats the whole answer, so that its beginning may be missing.
--
-- Not here: what the counts mean (the collector knows), encoded bodies (they
-- would have to be inflated), failed calls (they have no usage).

local capture = require "kong.plugins.llm-audit.capture"
local json_scan = require "llm_gateway.json_scan"
local json_tail = require "llm_gateway.json_tail"

local byte = string.byte
local find = string.find
local lower = string.lower
local match = string.match
local next = next
local pairs = pairs
local sub = string.sub
local tonumber = tonumber

-- The answer of /v1/responses repeats the instructions before it names the
-- model: with less than this, long system prompts hide it.
local HEAD_BYTES = 49152

-- Behind the usage come some 500 bytes of nulls, before it in a stream's last
-- event nothing that is needed. More only helps answers with the token ids or
-- the log probabilities of their prompt, which have no bound.
local TAIL_BYTES = 16384

-- Longer than any name, also than the path of a model on disk that stands for
-- one; a text that got here by mistake is cut off from the log.
local MAX_MODEL_BYTES = 200

local MAX_DIGITS = 15

local QUOTE = byte('"')
local OPEN_BRACE = byte("{")

-- Names of counts; a table holds those of a nested object.
local COUNTS = {
  prompt_tokens = true,
  completion_tokens = true,
  total_tokens = true,
  prompt_tokens_details = { cached_tokens = true },
  completion_tokens_details = { reasoning_tokens = true },

  input_tokens = true,
  output_tokens = true,
  input_tokens_details = { cached_tokens = true },
  output_tokens_details = { reasoning_tokens = true },

  cache_read_input_tokens = true,
  cache_creation_input_tokens = true,
  reasoning_tokens = true,
}

local TERMINAL_TYPES = {
  ["response.completed"] = true,
  ["response.incomplete"] = true,
  ["response.failed"] = true,
  ["message_stop"] = true,
}

local M = {}


-- @return a capture for the body of an answer with these headers
function M.capture(status, content_type, content_encoding)
  local kind = lower(content_type or "")
  local is_readable = status >= 200 and status < 300 and not content_encoding
                      and (find(kind, "json", 1, true)
                           or find(kind, "text/event-stream", 1, true) == 1)

  if not is_readable then
    return capture.new(0)
  end

  return capture.new_ends(HEAD_BYTES, TAIL_BYTES)
end


local function read_string(text, from, to)
  if byte(text, from) ~= QUOTE or to - from - 1 > MAX_MODEL_BYTES then
    return nil
  end

  local value = json_scan.text_of(text, from, to)
  return value ~= "" and value or nil
end


-- @param open position of "{"
-- @return table of counts, nil when there are none
local function read_counts(text, open, names)
  local counts = {}

  json_scan.members(text, open, function(key, from, to)
    local name = to and names[key]
    if name == true then
      local digits = match(sub(text, from, to), "^%d+$")
      counts[key] = digits and #digits <= MAX_DIGITS and tonumber(digits) or nil

    elseif name then
      counts[key] = byte(text, from) == OPEN_BRACE
                    and read_counts(text, from, name) or nil
    end
  end)

  return next(counts) and counts or nil
end


-- Notes a member that any answer may have.
local function read_member(found, text, key, from, to)
  if key == "model" then
    found.model = read_string(text, from, to) or found.model

  elseif key == "usage" and byte(text, from) == OPEN_BRACE then
    found.usage = read_counts(text, from, COUNTS) or found.usage
  end
end


-- @param is_whole whether nothing is missing between the head and the end
local function read_json(found, head, tail, is_whole)
  local open = json_scan.skip_space(head, 1)
  if open then
    json_scan.members(head, open, function(key, from, to)
      if to then
        read_member(found, head, key, from, to)
      end
    end)
  end

  -- Only of a body that came to its end is the last brace the outermost one.
  if tail and is_whole then
    local late = {}
    json_tail.members(tail, function(key, from, to)
      if key and not late[key] then
        read_member(late, tail, key, from, to)
      end

      return late.usage and (late.model or found.model)
    end)

    found.usage = late.usage or found.usage
    found.model = late.model or found.model
  end
end


-- @param line a line of a stream; it may be incomplete
local function read_event(found, line)
  local open = match(line, "^data: ?(){")
  if not open then
    return
  end

  json_scan.members(line, open, function(key, from, to)
    local is_object = byte(line, from) == OPEN_BRACE

    -- message_start of /v1/messages: message_delta completes its counts
    if key == "message" and is_object then
      local started = {}
      json_scan.members(line, from, function(inner, first, last)
        if last then
          read_member(started, line, inner, first, last)
        end
      end)
      found.model = found.model or started.model
      found.started = started.usage or found.started

    -- of /v1/responses
    elseif key == "response" and is_object then
      json_scan.members(line, from, function(inner, first, last)
        if last then
          read_member(found, line, inner, first, last)
        end
      end)

    elseif to then
      read_member(found, line, key, from, to)
    end
  end)
end


-- Reads the first event that has a model.
local function read_start(found, text)
  local from = 1

  while from and not found.model do
    local line_end = find(text, "\n", from, true)
    read_event(found, sub(text, from, line_end or -1))
    from = line_end and line_end + 1
  end
end


-- @return position of the next key "usage" of which the value is an object
local function find_usage(text, from)
  local at, last = find(text, '"usage"', from, true)

  while at and not find(text, "^%s*:%s*{", last + 1) do
    at, last = find(text, '"usage"', last, true)
  end

  return at
end


-- Reads every event that has a usage; of running counts the last ones stay.
-- @param from where a line begins
local function read_usages(found, text, from)
  local at = find_usage(text, from)

  while at do
    local line_end = find(text, "\n", from, true)
    if not line_end then
      return
    end

    if line_end > at then
      read_event(found, sub(text, from, line_end))
      at = find_usage(text, line_end)
    end

    from = line_end + 1
  end
end


-- Reads the last event, of which the beginning may be missing.
local function read_end(found, text)
  local line = match(text, "^(.*[^\r\n])\r?\n")
  line = line and match(line, "^.*\n(.*)$") or line
  if not line then
    return
  end

  if find(line, "^data: ?%[DONE%]$") then
    found.ended = true
    return
  end

  local kind, response_from, response_to
  json_tail.members(line, function(key, from, to)
    if key == "type" then
      kind = read_string(line, from, to)

    -- A value of which the beginning is missing is that of "response", if the
    -- event is one that ends a stream of /v1/responses.
    elseif key == "response" or not key then
      response_from, response_to = from or 1, to
    end
  end)

  if not TERMINAL_TYPES[kind] then
    -- Of an event without its beginning the type may be missing, too.
    if find(line, "^data:") then
      found.ended = false
    end

    return
  end

  found.ended = true

  if response_to then
    local response = sub(line, response_from, response_to)
    json_tail.members(response, function(key, from, to)
      if key then
        read_member(found, response, key, from, to)
      end

      return key == "usage"
    end)
  end
end


local function read_stream(found, head, tail)
  read_start(found, head)

  if tail then
    -- the tail most likely begins in the middle of a line
    local line_end = find(tail, "\n", 1, true)
    if line_end then
      read_usages(found, tail, line_end + 1)
    end

  else
    read_usages(found, head, 1)
  end

  read_end(found, tail or head)

  if found.started then
    local usage = found.started
    for name, count in pairs(found.usage or {}) do
      usage[name] = count
    end
    found.usage = usage
  end
end


-- @param body a capture that M.capture() has made
-- @param is_stream whether the body is an event stream
-- @param is_whole whether the end of the body was seen
-- @return table: model and usage, as far as they were reported; ended, whether
-- a stream's last event was the one after which nothing comes, nil when that
-- cannot be told
function M.read(body, is_stream, is_whole)
  local found = {}
  local head, tail = body:ends()

  if is_stream then
    read_stream(found, head, tail)
  else
    read_json(found, head, tail, is_whole)
  end

  return found
end


return M
