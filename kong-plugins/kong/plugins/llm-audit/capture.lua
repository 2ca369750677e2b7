-- Keeps a copy of a response body, bounded in size.
--
-- Of a body that does not fit, the head is kept. `size` is the true size in any
-- case. Who wants the head and the tail, uncut or cut between events, asks for
-- them with new_ends().
--
-- Memory: never more than the limit's worth of body. A few chunks stay the
-- strings that they are: most answers that are no stream have no more, and need
-- no buffer then, and with one chunk no copy. More go into a buffer that grows
-- by doubling; free() gives it back at once instead of at the next collection.

local buffer = require "string.buffer"
local sse = require "kong.plugins.llm-audit.sse"

local new_table = require "table.new"

local concat = table.concat
local ipairs = ipairs
local sub = string.sub

-- An answer of 128 KB has as many: nginx hands over 4 KB or more at a time,
-- unless the server sends less. Each is a string of its own, so small ones have
-- to be few.
local MAX_CHUNKS = 32

-- Room from the beginning for those of an answer of 20 KB.
local USUAL_CHUNKS = 8

local M = {}

local Capture = {}
Capture.__index = Capture


-- @param limit the most bytes to keep
function M.new(limit)
  return M.new_ends(limit, 0)
end


-- @param is_event_stream whether to cut between events
-- @return a capture of the first and the last bytes of whatever comes
function M.new_ends(head_limit, tail_limit, is_event_stream)
  return setmetatable({
    size = 0,
    limit = head_limit + tail_limit,
    is_event_stream = is_event_stream,
    tail_limit = tail_limit,
    head_room = head_limit,
    -- the chunks as long as they are few, then all of them in a buffer
    chunks = nil,
    head = nil,
    tail = nil,
  }, Capture)
end


-- Moves the chunks into a buffer, where they take no more than their bytes.
local function start_buffer(self)
  local head = buffer.new()
  for _, chunk in ipairs(self.chunks) do
    head:put(chunk)
  end

  self.head = head
  self.chunks = nil
end


local function keep(self, chunk)
  local chunks = self.chunks
  if self.head then
    self.head:put(chunk)

  elseif not chunks then
    chunks = new_table(USUAL_CHUNKS, 0)
    chunks[1] = chunk
    self.chunks = chunks

  else
    chunks[#chunks + 1] = chunk
    if #chunks > MAX_CHUNKS then
      start_buffer(self)
    end
  end
end


function Capture:put(chunk)
  local length = #chunk
  self.size = self.size + length

  local room = self.head_room
  if room > 0 then
    if length <= room then
      keep(self, chunk)
      self.head_room = room - length
      return
    end

    keep(self, sub(chunk, 1, room))
    self.head_room = 0
    chunk = sub(chunk, room + 1)
  end

  local tail_limit = self.tail_limit
  if tail_limit == 0 then
    return
  end

  local tail = self.tail
  if not tail then
    tail = buffer.new()
    self.tail = tail
  end

  tail:put(chunk)
  if #tail > tail_limit then
    tail:skip(#tail - tail_limit)
  end
end


function Capture:is_truncated()
  return self.size > self.limit
end


-- @return what was left out of a body that is not truncated: nothing
function Capture.left_out()
  return nil
end


local function kept_head(self)
  local chunks = self.chunks
  if chunks then
    return chunks[2] and concat(chunks) or chunks[1]
  end

  return self.head and self.head:tostring()
end


-- @return what was kept, nil when there is nothing
function Capture:content()
  local head = kept_head(self)
  if not head then
    return nil
  end

  local tail = self.tail and self.tail:tostring() or ""

  if self.is_event_stream and self:is_truncated() then
    head = sub(head, 1, sse.after_last_event(head) - 1)

    -- the tail most likely begins in the middle of an event
    local first_end = sse.blank_line_end(tail, 1)
    tail = first_end and sub(tail, first_end + 1) or ""
  end

  local content = tail == "" and head or head .. tail
  return content ~= "" and content or nil
end


-- @return the first bytes, and the last ones if any are missing in between,
-- both uncut
function Capture:ends()
  local head = kept_head(self) or ""
  local tail = self.tail and self.tail:tostring() or ""

  if not self:is_truncated() then
    return head .. tail
  end

  return head, tail
end


function Capture:free()
  self.chunks = nil

  if self.head then
    self.head:free()
    self.head = nil
  end

  if self.tail then
    self.tail:free()
    self.tail = nil
  end
end


return M
