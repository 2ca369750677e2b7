-- Takes the usage event out of a stream of which the client did not ask for
-- one: data: {…,"choices":[],"usage":{…}}
--
-- Invariants: only such events are removed, whole, with the other fields and
-- comments they may have and their empty line, and nothing else; what comes out
-- does not depend on how the stream was cut into chunks; no complete event is
-- ever held back.
--
-- A chunk that needs no change is returned as the very same string, so that
-- the caller can leave nginx's own buffer in place. That matters: a buffer
-- that Lua has replaced loses its "send now" mark when the route buffers
-- responses, and may then wait for the next one. For the same reason an
-- incomplete event is held only where the usage event can be expected: after
-- a choice has finished (finish_reason), or in streams that have events but
-- never a finish_reason. Other events may be cut anywhere and pass at once.

local json_scan = require "llm_gateway.json_scan"
local sse = require "kong.plugins.llm-audit.sse"

local byte = string.byte
local concat = table.concat
local find = string.find
local gmatch = string.gmatch
local match = string.match
local max = math.max
local sub = string.sub

-- vLLM's usage event has about 250 bytes, most of it the model's name. More
-- would mean more to hold and to scan again for each small chunk; less might
-- let the event of a long model path through.
local MAX_EVENT_BYTES = 16384

-- What is remembered of an event that passes in pieces: enough for an empty
-- line and a finish_reason to be seen across the cut.
local CARRY_BYTES = 64

local OPEN_BRACE = byte("{")
local OPEN_BRACKET = byte("[")
local CLOSE_BRACKET = byte("]")

local M = {}

local Filter = {}
Filter.__index = Filter


-- The first "choices" and the first "usage" decide.
-- @param open position of "{" in an event, which may be incomplete
-- @return true or false, nil when the text does not tell yet
local function object_is_usage(text, open)
  local choices_empty, usage_present

  local close, err = json_scan.members(text, open, function(key, from)
    if key == "choices" and choices_empty == nil then
      local inner = json_scan.skip_space(text, from + 1)
      if byte(text, from) ~= OPEN_BRACKET then
        choices_empty = false

      elseif inner then
        choices_empty = byte(text, inner) == CLOSE_BRACKET
      end

    elseif key == "usage" and usage_present == nil then
      usage_present = byte(text, from) == OPEN_BRACE
    end

    return choices_empty == false or usage_present == false
  end)

  if close then
    return choices_empty == true and usage_present == true
  end

  if err == json_scan.INCOMPLETE then
    return nil
  end

  return false
end


-- @param event an event, from its first byte; it may be incomplete
-- @return its data, nil when there is none yet
local function data_of(event)
  local first = match(event, "^data: ?()")
  local line_end = find(event, "[\r\n]")
  if first and (not line_end or not find(event, "[^\r\n]", line_end)) then
    return line_end and sub(event, first, line_end - 1) or sub(event, first)
  end

  local lines = {}
  for line in gmatch(event, "[^\r\n]+") do
    lines[#lines + 1] = match(line, "^data: ?(.*)")
  end

  return lines[1] and concat(lines, "\n")
end


-- @param event an event, from its first byte; it may be incomplete
-- @param is_complete whether it is not
-- @return true or false, nil when the text does not tell yet
local function is_usage_event(event, is_complete)
  if #event > MAX_EVENT_BYTES then
    return false
  end

  local data = data_of(event)
  local open = data and json_scan.skip_space(data, 1)
  if not open then
    return is_complete and false or nil
  end

  if byte(data, open) ~= OPEN_BRACE then
    return false
  end

  return object_is_usage(data, open)
end


function M.new()
  return setmetatable({
    -- the beginning of an event that may be the usage event
    held = nil,
    -- the last bytes of an event of which the beginning has passed
    carry = nil,
    seen_event = false,
    seen_finish_key = false,
    seen_finish = false,
  }, Filter)
end


local function expects_usage(self)
  return self.seen_finish or (self.seen_event and not self.seen_finish_key)
end


local function note_finish(self, text, from, to)
  if self.seen_finish then
    return
  end

  local _, key_end = find(text, '"finish_reason"', from, true)
  while key_end and key_end <= to do
    self.seen_finish_key = true

    -- anything but null; the value may stand in the next piece
    if find(text, "^%s*:%s*[^n%s]", key_end + 1) then
      self.seen_finish = true
      return
    end

    _, key_end = find(text, '"finish_reason"', key_end + 1, true)
  end
end


-- @return what passes, and what is to be held or nil
local function take_incomplete(self, text, from)
  if expects_usage(self) then
    local event = sub(text, from)
    if is_usage_event(event, false) ~= false then
      return sub(text, 1, from - 1), event
    end
  end

  note_finish(self, text, from, #text)
  self.carry = sub(text, max(from, #text - CARRY_BYTES + 1))

  return text
end


-- @param from where an event begins in `text`; what stands before passes
-- @return what passes, and what is to be held or nil
local function take_events(self, text, from)
  -- The usual chunk: whole events, none of them with a usage.
  if not find(text, '"usage"', from, true) and sse.ends_with_blank_line(text)
  then
    note_finish(self, text, from, #text)
    self.seen_event = true
    return text
  end

  while from <= #text do
    local last = sse.event_end(text, from)
    if not last then
      return take_incomplete(self, text, from)
    end

    if expects_usage(self)
      and is_usage_event(sub(text, from, last), true) == true
    then
      text = sub(text, 1, from - 1) .. sub(text, last + 1)

    else
      note_finish(self, text, from, last)
      self.seen_event = true
      from = last + 1
    end
  end

  return text
end


local function push(self, chunk)
  local held = self.held
  if held then
    return take_events(self, held .. chunk, 1)
  end

  local carry = self.carry
  if not carry then
    return take_events(self, chunk, 1)
  end

  local text = carry .. chunk
  local last = sse.blank_line_end(text, 1)
  if not last then
    note_finish(self, text, 1, #text)
    self.carry = sub(text, -CARRY_BYTES)
    return chunk
  end

  note_finish(self, text, 1, last)
  self.carry = nil
  self.seen_event = true

  return take_events(self, chunk, last - #carry + 1)
end


-- @return what the client may have now: `chunk` itself where nothing changes
function Filter:push(chunk)
  -- `held` changes last: should anything fail, no byte is lost.
  local out, held = push(self, chunk)
  self.held = held

  return out
end


-- @return what was still held back when the stream ended, maybe ""
function Filter:finish()
  local held = self.held
  self.held = nil

  return held or ""
end


return M
