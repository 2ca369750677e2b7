-- Makes a JSON request body that does not fit into the log entry shorter, so
-- that what was asked is still in it.
--
-- Rules
--   What comes out is JSON if the body was: only the insides of strings, blanks
--   between values and whole elements of a list are taken out, and a mark says
--   how many bytes stood there.
--   First go texts that nobody reads, pictures and sound in base64, and runs of
--   blanks; then the middle of long texts, the earliest first, since the
--   question is at the end; then elements from the middle of the longest list.
--   What is no JSON keeps its head.
--
-- Work: each byte is looked at for the next quote or bracket, twice at most:
-- 0.2 to 7 ms for each MiB, and never more than MAX_TOKENS of them.
-- Memory: once more the body, less what is left out.

local ffi = require "ffi"

local byte = string.byte
local cast = ffi.cast
local concat = table.concat
local find = string.find
local floor = math.floor
local format = string.format
local gsub = string.gsub
local match = string.match
local max = math.max
local min = math.min
local sub = string.sub

-- Strings and runs of blanks below this are left alone.
local LONG_BYTES = 1024

-- What stays of a long text that had to be cut: as much of both ends.
local KEPT_BYTES = 512

-- What stays of base64: a data URL says in front what it is.
local KEPT_OF_BASE64 = 64

-- Brackets and strings of a body, at 0.1 µs each. A conversation of 20 MB has
-- some hundred thousand. What has more keeps its head.
local MAX_TOKENS = 300000

local QUOTE = byte('"')
local BACKSLASH = byte("\\")
local OPEN_BRACE = byte("{")
local OPEN_BRACKET = byte("[")

local MARK = "[%d bytes left out]"

-- Classes of bytes. A loop over them that LuaJIT compiles takes 1 ns a byte, a
-- pattern with a set of characters 30.
local is_plain = ffi.new("bool[256]")
local is_blank = ffi.new("bool[256]")

for code = 0, 255 do
  is_plain[code] = not find(string.char(code), '["%[%]{}]')
  is_blank[code] = find(string.char(code), "[ \t\r\n]") ~= nil
end

local M = {}


-- @return position of the first byte from `pos` on that is not of `class`; nil
-- when there is none
local function after_span(text, pos, class)
  local bytes = cast("const uint8_t *", text)
  local size = #text

  for i = pos - 1, size - 1 do
    if not class[bytes[i]] then
      return i + 1
    end
  end

  return nil
end


-- @param pos position of the opening quote
-- @return position of the closing one
local function string_end(text, pos)
  local at = find(text, '"', pos + 1, true)

  while at do
    local before = at - 1
    while byte(text, before) == BACKSLASH do
      before = before - 1
    end
    -- an even number of backslashes escapes only one another
    if (at - before) % 2 == 1 then
      return at
    end
    at = find(text, '"', at + 1, true)
  end

  return nil
end


-- Walks all strings and brackets of a text that holds one JSON value.
-- @param on_string(from, to, depth) gets the positions of its quotes
-- @param on_bracket(pos, depth, is_open)
-- @param on_gap(from, to) gets long stretches in between
-- @return whether the brackets add up
local function walk(text, on_string, on_bracket, on_gap)
  local depth = 0
  local pos = 1
  local tokens = 0

  while true do
    local at = after_span(text, pos, is_plain)
    if not at then
      return depth == 0 and tokens > 0
    end

    tokens = tokens + 1
    if tokens > MAX_TOKENS or depth == 0 and tokens > 1 then
      return false
    end
    if at - pos >= LONG_BYTES then
      on_gap(pos, at - 1)
    end

    local found = byte(text, at)
    if found == QUOTE then
      local last = string_end(text, at)
      if not last or depth == 0 then
        return false
      end
      on_string(at, last, depth)
      at = last
    elseif found == OPEN_BRACE or found == OPEN_BRACKET then
      depth = depth + 1
      on_bracket(at, depth, true)
    else
      on_bracket(at, depth, false)
      depth = depth - 1
    end

    pos = at + 1
  end
end


local function nothing()
end


-- @return the last position up to `pos` before which a JSON string may be cut:
-- not in an escape, not in a character
local function boundary(text, pos)
  local from = max(pos - 6, 1)
  local escape = match(sub(text, from, pos - 1), "^.*()\\")
  if escape then
    pos = from + escape - 1
    while byte(text, pos - 1) == BACKSLASH do
      pos = pos - 1
    end
    -- nor between the halves of a surrogate pair
    return find(sub(text, pos - 6, pos - 1), "^\\u[dD][89abAB]%x%x$")
           and pos - 6 or pos
  end

  for _ = 1, 3 do
    local next_byte = byte(text, pos)
    if not next_byte or next_byte < 128 or next_byte >= 192 then
      break
    end
    pos = pos - 1
  end

  return pos
end


-- Whether a string is base64, by a piece in it. Prose has blanks or escapes; of
-- base64 some clients escape the slash.
local function is_base64(text, from, to)
  local middle = from + floor((to - from) / 2)
  local piece = gsub(sub(text, middle - 128, middle + 126), "\\/", "")

  return not find(piece, "[^%w+/=_-]", 2)
end


-- @return what is to be cut from the string between two quotes, as an edit, so
-- that `head` bytes in front and `tail` at the end stay
local function cut_string(text, from, to, head, tail)
  local first = max(boundary(text, from + 1 + head), from + 1)
  local last = boundary(text, to - tail) - 1

  return { from = first, to = last, mark = format(MARK, last - first + 1) }
end


local function saved(edit)
  return edit.to - edit.from + 1 - #edit.mark
end


local function apply(text, edits)
  local parts = {}
  local pos = 1

  for _, edit in ipairs(edits) do
    parts[#parts + 1] = sub(text, pos, edit.from - 1)
    parts[#parts + 1] = edit.mark
    pos = edit.to + 1
  end
  parts[#parts + 1] = sub(text, pos)

  return concat(parts)
end


-- Finds runs of blanks: a long one has a blank at one of the places that are
-- looked at.
local function find_blanks(text, from, to, found)
  local pos = from

  while pos <= to do
    if is_blank[byte(text, pos)] then
      local first = pos
      while first > from and is_blank[byte(text, first - 1)] do
        first = first - 1
      end
      local last = min((after_span(text, pos, is_blank) or to + 1) - 1, to)
      if last - first >= LONG_BYTES then
        found(first, last)
      end
      pos = last
    end
    pos = pos + LONG_BYTES / 2
  end
end


-- Cuts long strings and blanks.
-- @return the text, shorter or not; nil when it is no JSON
local function cut_strings(text, limit)
  local places, edits = {}, {}
  local surplus = #text - limit

  local is_json = walk(text, function(from, to)
    if to - from - 1 >= LONG_BYTES then
      places[#places + 1] = { from = from, to = to }
    end
  end, nothing, function(from, to)
    find_blanks(text, from, to, function(first, last)
      places[#places + 1] = { from = first, to = last, is_blank = true }
    end)
  end)
  if not is_json then
    return nil
  end

  for _, place in ipairs(places) do
    local from, to = place.from, place.to
    if place.is_blank then
      place.edit = { from = from, to = to, mark = " " }
    elseif is_base64(text, from, to) then
      place.edit = cut_string(text, from, to, KEPT_OF_BASE64, 0)
    end
    if place.edit then
      surplus = surplus - saved(place.edit)
    end
  end

  for _, place in ipairs(places) do
    if surplus <= 0 then
      break
    end
    if not place.edit then
      -- No more than what is too much: the last one may keep most of itself.
      local length = place.to - place.from - 1
      local kept = max(length - surplus - #MARK - 32, 2 * KEPT_BYTES)
      local half = floor(min(kept, length) / 2)
      local edit = cut_string(text, place.from, place.to, half, half)
      if saved(edit) > 0 then
        place.edit = edit
        surplus = surplus - saved(edit)
      end
    end
  end

  for _, place in ipairs(places) do
    edits[#edits + 1] = place.edit
  end

  return apply(text, edits)
end


-- The elements of the longest list that is a member of the outermost object.
local function longest_list(text)
  local longest, current = nil, nil

  walk(text, function(from, to, depth)
    if current and depth == 2 then
      current[#current + 1] = { from = from, to = to }
    end
  end, function(pos, depth, is_open)
    if depth == 2 then
      if is_open then
        current = byte(text, pos) == OPEN_BRACKET and { from = pos } or nil
      elseif current then
        current.size = pos - current.from
        if not longest or current.size > longest.size then
          longest = current
        end
        current = nil
      end

    elseif depth == 3 and current then
      if is_open then
        current[#current + 1] = { from = pos }
      else
        current[#current].to = pos
      end
    end
  end, nothing)

  return longest
end


-- Takes elements from the middle of a list: the first, which as a rule is the
-- system's, and the last ones stay.
local function cut_elements(text, limit)
  local list = longest_list(text)
  if not list or #list < 3 then
    return text
  end

  local surplus = #text - limit
  local last = 1
  local edit
  repeat
    last = last + 1
    edit = { from = list[2].from, to = list[last].to }
    edit.mark = '"' .. format(MARK, edit.to - edit.from + 1) .. '"'
  until saved(edit) >= surplus or last == #list - 1

  return saved(edit) > 0 and apply(text, { edit }) or text
end


-- @param body a request body that is longer than `limit`
-- @return at most `limit` bytes of it
function M.shorten(body, limit)
  local text = body

  if find(body, "^\239?\187?\191?[ \t\r\n]*[{%[]") and limit >= LONG_BYTES then
    text = cut_strings(body, limit) or body
    if #text > limit then
      text = cut_elements(text, limit)
    end
  end

  return #text <= limit and text or sub(text, 1, limit)
end


return M
