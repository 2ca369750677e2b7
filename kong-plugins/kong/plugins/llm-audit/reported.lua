-- Takes from an answer what the server reports about itself: the model and
-- the token counts. For capture = metadata, where no body reaches the
-- collector.
--
-- Invariants
--   Nothing else of the answer comes out: the model is a short string from the
--   place where the API has it, the usage is built anew from counts of known
--   names.
--   What was not reported, or not seen, is nil; nothing is guessed. What counts
--   is what the collector takes for a count (tests/fixtures/usage.json): whole
--   numbers, also as 61.0 or "61"; {} and zeros never replace counts. Text that
--   merely looks like a usage is never taken for one: JSON is walked by its
--   structure, from the beginning, or from the end where the beginning is
--   missing (see json_tail).
--   No more than HEAD_BYTES and TAIL_BYTES of a body are kept or looked at.
--
-- Where the APIs have it (vLLM 0.32)
--   JSON: `model` in the head, behind the content in /v1/messages; `usage` at
--   the end, before the results in /v1/rerank; other servers have it in the
--   choice.
--   Streams: the first event has the model, in /v1/messages also the input
--   tokens; the last or last but one the usage. In /v1/responses that event
--   repeats the whole answer, so that its beginning may be missing.
--
-- Not here: what the counts mean (the collector knows), encoded bodies (they
-- would have to be inflated), failed calls (they have no usage).

local capture = require "kong.plugins.llm-audit.capture"
local json_scan = require "llm_gateway.json_scan"
local json_tail = require "llm_gateway.json_tail"
local usage_counts = require "kong.plugins.llm-audit.usage_counts"

local byte = string.byte
local concat = table.concat
local find = string.find
local gmatch = string.gmatch
local gsub = string.gsub
local lower = string.lower
local match = string.match
local next = next
local pairs = pairs
local sub = string.sub

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

-- Events without data that may stand behind the last one: comments.
local MAX_LAST_EVENTS = 3

local BOM = "\239\187\191"

local LF = byte("\n")
local QUOTE = byte('"')
local OPEN_BRACE = byte("{")
local OPEN_BRACKET = byte("[")

local TERMINAL_TYPES = {
  ["response.completed"] = true,
  ["response.incomplete"] = true,
  ["response.failed"] = true,
  ["response.cancelled"] = true,
  ["message_stop"] = true,
  ["transcript.text.done"] = true,
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


-- @return the counts of the choices
local function read_choices(text, open)
  local counts

  json_scan.elements(text, open, function(from)
    json_scan.members(text, from, function(key, first, last)
      if key == "usage" and last and byte(text, first) == OPEN_BRACE then
        local usage = usage_counts.read(text, first)
        counts = usage and usage_counts.larger(counts, usage) or counts
      end
    end)
  end)

  return counts
end


-- Notes a member that any answer may have.
local function read_member(found, text, key, from, to)
  if key == "model" or key == "status" then
    found[key] = read_string(text, from, to) or found[key]

  elseif key == "usage" and byte(text, from) == OPEN_BRACE then
    found.usage = usage_counts.read(text, from) or found.usage

  elseif key == "choices" and byte(text, from) == OPEN_BRACKET
    and find(text, '"usage"', from, true)
  then
    found.choices = read_choices(text, from)

  elseif key == "meta" and byte(text, from) == OPEN_BRACE then
    -- Cohere's form bills instead of reporting.
    json_scan.members(text, from, function(inner, first, last)
      if inner == "billed_units" and last and byte(text, first) == OPEN_BRACE
      then
        found.billed = usage_counts.read(text, first)
      end
    end)
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
    found.billed = late.billed or found.billed
    found.model = late.model or found.model
    found.status = late.status or found.status
  end

  local usage = found.usage
  if found.choices and not (usage and usage_counts.has_prompt(usage)) then
    found.usage = usage_counts.larger(usage, found.choices)
  end
  found.usage = found.usage or found.billed
end


local function add_usage(found, usage)
  local before = found.usage
  if found.is_messages and before then
    usage_counts.add_to_message(before, usage)
  else
    found.usage = usage_counts.larger(before, usage)
  end
end


-- @return the data of the event that stands from here to there; nil when it
-- has none
local function data_of(text, from, to)
  local first = match(text, "^data: ?()", from)
  local line_end = find(text, "\n", from, true)
  if first and (not line_end or line_end > to) then
    return sub(text, first, to)
  end

  local lines = {}
  for line in gmatch(sub(text, from, to), "[^\n]+") do
    lines[#lines + 1] = match(line, "^data: ?(.*)")
  end

  return lines[1] and concat(lines, "\n")
end


-- @return position of the event's last byte without its line end, and of the
-- next event
local function event_bounds(text, from)
  local blank = find(text, "\n\n", from, true)
  if not blank then
    local last = byte(text, -1) == LF and #text - 1 or #text
    return last, #text + 1
  end

  return blank - 1, find(text, "[^\n]", blank) or #text + 1
end


-- @param data of an event; it may be incomplete
local function read_event(found, data)
  local open = json_scan.skip_space(data, 1)
  if not open then
    return
  end

  local event = {}
  json_scan.members(data, open, function(key, from, to)
    -- message_start of /v1/messages, its message_delta where the usage stands
    -- inside the delta, and /v1/responses
    if (key == "message" or key == "response" or key == "delta")
      and byte(data, from) == OPEN_BRACE
    then
      if key == "message" then
        found.is_messages = true
      end
      json_scan.members(data, from, function(inner, first, last)
        if last then
          read_member(event, data, inner, first, last)
        end
      end)

    elseif to then
      read_member(event, data, key, from, to)
    end
  end)

  found.model = found.model or event.model
  if event.usage then
    add_usage(found, event.usage)
  end
  if event.choices then
    add_usage(found, event.choices)
  end
end


-- Reads events until one has a model.
local function read_start(found, text)
  local from = 1

  while from <= #text and not found.model do
    local to, after = event_bounds(text, from)
    local data = data_of(text, from, to)
    if data then
      read_event(found, data)
    end
    from = after
  end

  return from
end


-- @return position of the next key "usage" of which the value is an object
local function find_usage(text, from)
  local at, last = find(text, '"usage"', from, true)

  while at and not find(text, "^%s*:%s*{", last + 1) do
    at, last = find(text, '"usage"', last, true)
  end

  return at
end


-- Reads every event that has a usage.
-- @param from where an event begins
local function read_usages(found, text, from)
  local at = find_usage(text, from)

  while at do
    local to, after = event_bounds(text, from)

    if to >= at then
      local data = data_of(text, from, to)
      if data then
        read_event(found, data)
      end
      at = find_usage(text, after)
    end

    from = after
  end
end


-- @return whether an event is the one after which nothing comes; nil when that
-- cannot be told, because its beginning is missing
local function is_terminal(found, data, has_beginning)
  if find(data, '^%s*"?%[[Dd][Oo][Nn][Ee]%]"?%s*$') then
    return true
  end

  local kind, response_from, response_to
  json_tail.members(data, function(key, from, to)
    if key == "type" then
      kind = read_string(data, from, to)

    -- A value of which the beginning is missing is that of "response", if the
    -- event is one that ends a stream of /v1/responses.
    elseif key == "response" or not key then
      response_from, response_to = from or 1, to
    end
  end)

  if not TERMINAL_TYPES[kind] then
    return not has_beginning and nil
  end

  if response_to then
    local response = sub(data, response_from, response_to)
    local late = {}
    json_tail.members(response, function(key, from, to)
      if key then
        read_member(late, response, key, from, to)
      end

      return key == "usage"
    end)
    found.model = late.model or found.model
    if late.usage then
      add_usage(found, late.usage)
    end
  end

  return true
end


-- Reads the last event that has data, of which the beginning may be missing.
-- @param is_cut whether the text begins in the middle of the stream
local function read_end(found, text, is_cut)
  for _ = 1, MAX_LAST_EVENTS do
    local last = match(text, "^.*\n\n()[^\n]")
    local from = last or 1
    local data = data_of(text, from, (event_bounds(text, from)))
    local has_beginning = data ~= nil

    if not data and not last and is_cut then
      data = match(text, "([^\n]*)\n*$")
    end

    if data then
      found.ended = is_terminal(found, data, has_beginning)
      return
    end

    if not last then
      -- Comments are no end.
      found.ended = (is_cut or text == "") and found.ended
      return
    end
    text = sub(text, 1, last - 1)
  end
end


-- Notes which choices of an event have said why they ended, in `finished` by
-- their index.
local function note_finished(finished, data)
  local open = json_scan.skip_space(data, 1)
  local position = 0

  local function note_choice(from)
    local index, reason
    json_scan.members(data, from, function(key, first, last)
      if key == "index" and last then
        index = sub(data, first, last)
      elseif key == "finish_reason" and last then
        reason = read_string(data, first, last)
      end
    end)
    index = index or position
    finished[index] = finished[index] or reason ~= nil
    position = position + 1
  end

  json_scan.members(data, open, function(key, from, to)
    if key == "choices" and to and byte(data, from) == OPEN_BRACKET then
      json_scan.elements(data, from, note_choice)

    elseif key == "delta" and to and byte(data, from) == OPEN_BRACE then
      json_scan.members(data, from, function(inner, first, last)
        if inner == "stop_reason" and last then
          finished.message = read_string(data, first, last) ~= nil
        end
      end)

    elseif key == "error" and to and find(data, "^[^n]", from) then
      finished.error = false
    end
  end)
end


-- @return whether every choice said why it ended, as far as the text tells
local function is_finished(text)
  local finished = {}
  local from = 1

  while from <= #text do
    local to, after = event_bounds(text, from)
    local data = data_of(text, from, to)
    if data and json_scan.skip_space(data, 1) then
      note_finished(finished, data)
    end
    from = after
  end

  for _, is_it in pairs(finished) do
    if not is_it then
      return false
    end
  end

  return next(finished) ~= nil
end


-- @return text with line feeds only
local function with_line_feeds(text)
  return find(text, "\r", 1, true) and (gsub(text, "\r\n?", "\n")) or text
end


local function read_stream(found, head, tail)
  head = with_line_feeds(head)
  if sub(head, 1, #BOM) == BOM then
    head = sub(head, #BOM + 1)
  end

  local after = read_start(found, head)

  if tail then
    tail = with_line_feeds(tail)
    -- most likely it begins in the middle of a line
    local line_end = find(tail, "\n", 1, true)
    if line_end then
      read_usages(found, tail, line_end + 1)
    end

  else
    read_usages(found, head, after)
  end

  read_end(found, tail or head, tail ~= nil)
  if found.ended == false then
    found.finished = is_finished(tail or head) or nil
  end
end


-- @param body a capture that M.capture() has made
-- @param is_stream whether the body is an event stream
-- @param is_whole whether the end of the body was seen
-- @return table: model, usage and, of JSON, status, as far as they were
-- reported; ended, whether a stream's last event was the one after which
-- nothing comes, nil when that cannot be told; finished, whether it said why
-- it ended all the same
function M.read(body, is_stream, is_whole)
  local found = {}
  local head, tail = body:ends()

  -- JSON where a stream was announced
  if is_stream and not find(head, "^%s*{") then
    read_stream(found, head, tail)
  else
    read_json(found, head, tail, is_whole)
  end

  return { model = found.model, usage = found.usage, ended = found.ended,
           finished = found.finished, status = found.status }
end


return M
