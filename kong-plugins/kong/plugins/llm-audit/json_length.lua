-- Finds what makes a JSON text long: long strings, runs of blanks, and the
-- longest list of the outermost object.
--
-- Made for text that anybody may send. The work goes with the number of bytes,
-- 1 to 4 ns each whatever stands there, and whoever calls is told of it on the
-- way, every SLICE_BYTES at the latest, so that others can have a turn. What is
-- kept are the places of what is long.
--
-- What it is not: a validator. It sees that brackets balance and strings end.
--
-- Positions count from 0 here; in what is returned from 1, as for string.sub.

local ffi = require "ffi"
local json_bytes = require "llm_gateway.json_bytes"

local byte = string.byte
local cast = ffi.cast
local min = math.min
local setmetatable = setmetatable

local ESCAPE = json_bytes.ESCAPE
local OUTSIDE = json_bytes.OUTSIDE
local next_comma = json_bytes.next_comma
local skip_between = json_bytes.skip_between
local skip_space = json_bytes.skip_space
local skip_string = json_bytes.skip_string
local skip_structure = json_bytes.skip_structure

-- What is looked at before the caller is told.
local SLICE_BYTES = 65536

-- Brackets and strings of the outermost object, each of which costs more than
-- its bytes do. vLLM knows about a hundred members.
local MAX_TOKENS = 20000

local NO_LIMIT = 1e9

local QUOTE = byte('"')
local OPEN_BRACE = byte("{")
local CLOSE_BRACE = byte("}")
local OPEN_BRACKET = byte("[")

local M = {}

local Text = {}
Text.__index = Text


-- @param long_bytes strings and runs of blanks below this are of no interest
-- @param work called with the number of bytes that were looked at; may yield
function M.new(text, long_bytes, work)
  return setmetatable({
    -- keeps the memory that p points to
    text = text,
    p = cast("const uint8_t *", text),
    size = #text,
    long_bytes = long_bytes,
    work = work,
    -- { from, to, is_blank }: the first and the last byte of a run of blanks;
    -- of a string its quotes, the first one with less than a hundred bytes of
    -- the string
    places = {},
    -- { from, to } of the longest list, with its brackets
    list = nil,
  }, Text)
end


-- Calls skip(p, i, n) slice by slice.
-- @return position of the first byte that it does not skip, `to` if there is
-- none
local function skip_slices(self, skip, i, to)
  while i < to do
    local from = i
    local stop = min(i + SLICE_BYTES, to)
    i = skip(self.p, i, stop)
    self.work(i - from)
    if i < stop then
      break
    end
  end

  return i
end


-- @param i position in a string
-- @return position behind its closing quote, nil when there is none
local function string_end(self, i)
  local size = self.size
  local is_closed

  repeat
    local from = i
    i, is_closed = skip_string(self.p, i, min(i + SLICE_BYTES, size))
    self.work(i - from)
  until is_closed or i >= size

  return is_closed and i or nil
end


local function note(self, from, to, is_blank)
  if to - from > self.long_bytes then
    local places = self.places
    places[#places + 1] = { from = from, to = to, is_blank = is_blank }
  end
end


-- Notes runs of blanks in a stretch outside of strings. A long one has a blank
-- at one of the places that are looked at.
local function note_blanks(self, from, to)
  local p = self.p
  local pos = from

  while to - from >= self.long_bytes and pos < to do
    if skip_space(p, pos, pos + 1) > pos then
      local first = pos
      while first > from and skip_space(p, first - 1, first) == first do
        first = first - 1
      end
      pos = skip_slices(self, skip_space, pos, to)
      note(self, first + 1, pos, true)
    end
    pos = pos + self.long_bytes / 2
  end
end


-- Goes on in an array or an object, outside of strings.
-- @param depth 2 is in it; it ends where the depth gets 1
-- @param target stops at the first place outside of strings from here on
-- @return position and depth; nil when a string does not end
local function skip_nested(self, i, depth, target)
  local stretch = i

  while depth > 1 and i < target do
    local from = i
    local place
    i, depth, place = skip_structure(self.p, i, min(i + SLICE_BYTES, target),
                                     depth, NO_LIMIT)
    self.work(i - from)

    if place ~= OUTSIDE then
      note_blanks(self, stretch, i)
      local behind = string_end(self, place == ESCAPE and i + 1 or i)
      if not behind then
        return nil
      end
      note(self, i, behind)
      i = behind
      stretch = i
    end
  end
  note_blanks(self, stretch, i)

  return i, depth
end


-- @param open position of a bracket
-- @return position behind the one that closes it; nil when there is none
local function container_end(self, open)
  local i, depth = skip_nested(self, open + 1, 2, self.size)

  return depth == 1 and i or nil
end


-- @return position behind the outermost object, nil when it does not end
local function object_end(self, i)
  local p, size = self.p, self.size

  for _ = 1, MAX_TOKENS do
    local at = skip_slices(self, skip_between, i, size)
    if at >= size then
      return nil
    end
    note_blanks(self, i, at)

    local found = p[at]
    if found == CLOSE_BRACE then
      return at + 1
    elseif found == QUOTE then
      i = string_end(self, at + 1)
      if i then
        note(self, at + 1, i)
      end
    elseif found == OPEN_BRACE or found == OPEN_BRACKET then
      i = container_end(self, at)
    else
      i = nil
    end

    if not i then
      return nil
    end

    local list = self.list
    if found == OPEN_BRACKET and (not list or i - at > list.to - list.from) then
      self.list = { from = at + 1, to = i }
    end
  end

  return nil
end


-- Looks through the text.
-- @return whether it is an array or an object, and nothing else
function Text:look()
  local p, size = self.p, self.size
  local i = size > 3 and p[0] == 0xef and p[1] == 0xbb and p[2] == 0xbf and 3
            or 0

  local open = skip_slices(self, skip_space, i, size)
  note_blanks(self, i, open)

  local behind
  if open < size and p[open] == OPEN_BRACE then
    behind = object_end(self, open + 1)
  elseif open < size and p[open] == OPEN_BRACKET then
    behind = container_end(self, open)
  end
  if not behind then
    return false
  end
  note_blanks(self, behind, size)

  return skip_slices(self, skip_space, behind, size) == size
end


-- @param i position in a list, outside of what is in it or at depth
-- @return position of the list's next comma; nil when there is none
local function comma_behind(self, i, depth)
  local size = self.size
  local place = OUTSIDE

  while i < size do
    local from = i
    local stop = min(i + SLICE_BYTES, size)
    i, depth, place = next_comma(self.p, i, stop, depth, place)
    self.work(i - from)
    if depth == 1 then
      return nil
    elseif i < stop then
      return i
    end
  end

  return nil
end


-- The middle of a list: what follows its first element, without the last.
-- @param open position of its bracket, from 1
-- @param bytes that the middle has to have at least
-- @return position of its first and its last byte; nil when it has fewer
function Text:middle(open, bytes)
  local first = comma_behind(self, open, 2)
  if not first then
    return nil
  end

  local target = min(first + 1 + bytes, self.size)
  local i, depth = skip_nested(self, first + 1, 2, target)
  local comma = i and depth > 1 and comma_behind(self, i, depth)
  if not comma then
    return nil
  end

  return first + 2, comma
end


return M
