-- Keeps a copy of an event stream, bounded in size.
--
-- A stream that fits is kept as it came. Of one that does not, the older part
-- is made short (see stream_text): the text of some 170,000 tokens fits into
-- 1 MiB then. What is too long even so loses its middle, cut between events:
-- the tail has the usage and the finish reason. Only then is_truncated() is
-- true.
--
-- Memory: what is kept, at most the limit, and at most as much again that is
-- not looked through yet, in buffers that grow by doubling.
-- Work: once a stream does not fit, 3 to 6 ms for each MiB of it, 80 where
-- nothing can be joined, in slices so that no chunk waits for the whole stream.

local buffer = require "string.buffer"
local capture = require "kong.plugins.llm-audit.capture"
local sse = require "kong.plugins.llm-audit.sse"
local stream_text = require "kong.plugins.llm-audit.stream_text"

local floor = math.floor
local max = math.max
local min = math.min
local sub = string.sub

-- About 150 events of one token, which become one. Larger ones save little
-- more, smaller ones leave more events; this one takes a tenth of a
-- millisecond, and three where nothing can be joined.
local SLICE_BYTES = 32768

local M = {}

local Stream = {}
Stream.__index = Stream


local function new_kept(limit)
  local tail_limit = floor(limit / 2)

  return capture.new_ends(limit - tail_limit, tail_limit, true)
end


-- @param limit the most bytes to keep
function M.new(limit)
  return setmetatable({
    size = 0,
    limit = limit,
    slice_bytes = max(1, min(SLICE_BYTES, floor(limit / 4))),
    -- what came last, as it came
    raw = nil,
    -- the beginning of an event that stands before `raw`
    begun = "",
    -- what came first, made short; nil as long as everything fits
    kept = nil,
    short = nil,
  }, Stream)
end


local function make_short(self)
  if not self.short then
    self.kept = new_kept(self.limit)

    local function out(text)
      self.kept:put(text)
    end

    local function restart()
      self.kept:free()
      self.kept = new_kept(self.limit)
    end

    self.short = stream_text.new(out, restart)
  end

  -- An event that is longer than a slice is looked through in slices that grow
  -- with it, so that the work grows as its size does.
  local slice = self.raw:get(max(self.slice_bytes, #self.begun))
  local text = self.begun .. slice
  local whole = sse.after_last_event(text) - 1

  if whole > 0 then
    self.short:push(sub(text, 1, whole))
    self.short:flush()
    text = sub(text, whole + 1)
  end

  if #text > self.limit then
    -- no event of this size can be kept whole
    self.kept:put(text)
    text = ""
  end
  self.begun = text
end


-- Whether what is kept and what is still as it came fit together.
local function fits(self)
  local kept = self.kept and self.kept.size or 0

  return kept + #self.begun + #self.raw <= self.limit
end


function Stream:put(chunk)
  self.size = self.size + #chunk
  if self.limit == 0 then
    return
  end

  local raw = self.raw
  if not raw then
    raw = buffer.new()
    self.raw = raw
  end
  raw:put(chunk)

  if self.size <= self.limit then
    return
  end

  -- One slice for a chunk, which is not longer as a rule, so that no event
  -- waits for more.
  if #raw >= self.slice_bytes and not fits(self) then
    repeat
      make_short(self)
    until #raw <= self.limit
  end
end


-- Sees to it that all that is kept fits. To be called when nothing comes after.
local function finish(self)
  if not self.raw or self.size <= self.limit then
    return
  end

  while #self.raw > 0 and not fits(self) do
    make_short(self)
  end

  if not self.kept then
    return
  end

  self.kept:put(self.begun .. self.raw:get())
  self.begun = ""
end


-- Whether something is missing that belongs to the answer.
function Stream:is_truncated()
  finish(self)

  return self.kept ~= nil and self.kept:is_truncated()
         or self.limit == 0 and self.size > 0
end


-- @return what was left out though nothing of the answer's text is missing:
-- "logprobs", or nil
function Stream:left_out()
  finish(self)

  return self.short and self.short.left_out
end


-- @return what was kept, nil when there is nothing
function Stream:content()
  finish(self)

  local content = self.kept and self.kept:content()
                  or self.raw and self.raw:tostring()
  return content ~= "" and content or nil
end


function Stream:free()
  if self.raw then
    self.raw:free()
    self.raw = nil
  end

  if self.kept then
    self.kept:free()
    self.kept = nil
  end

  self.begun = ""
end


return M
