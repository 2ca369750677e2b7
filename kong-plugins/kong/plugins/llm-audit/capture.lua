-- Keeps a copy of a response body, bounded in size.
--
-- Of a body that does not fit, the head is kept. `size` is the true size in any
-- case. Who wants the head and the tail, uncut or cut between events, asks for
-- them with new_ends().
--
-- Memory: never more than the limit's worth of body, in buffers that grow by
-- doubling. free() gives it back at once instead of at the next collection.
-- The first chunk stays the string that it is: most answers that are no stream
-- have no other, and need neither a buffer nor a copy then.

local buffer = require "string.buffer"
local sse = require "kong.plugins.llm-audit.sse"

local sub = string.sub

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
    -- the first chunk, until there is a second one
    first = nil,
    head = nil,
    tail = nil,
  }, Capture)
end


-- @return the buffer of the head, with all in it that came before
local function head_buffer(self)
  local head = self.head
  if not head then
    head = buffer.new()
    self.head = head

    if self.first then
      head:put(self.first)
      self.first = nil
    end
  end

  return head
end


function Capture:put(chunk)
  local length = #chunk
  self.size = self.size + length

  local room = self.head_room
  if room > 0 then
    if length <= room then
      if self.size == length then
        self.first = chunk
      else
        head_buffer(self):put(chunk)
      end

      self.head_room = room - length
      return
    end

    head_buffer(self):put(sub(chunk, 1, room))
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
  return self.first or self.head and self.head:tostring()
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
  self.first = nil

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
