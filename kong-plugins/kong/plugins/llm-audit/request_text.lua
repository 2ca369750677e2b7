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
-- Work: each byte is looked at twice at most, 1 to 4 ns a time; who calls is
-- asked to pause on the way, so that no other call waits for all of it.
-- Memory: the body once more, less what is left out.

local buffer = require "string.buffer"
local ffi = require "ffi"
local json_length = require "kong.plugins.llm-audit.json_length"

local byte = string.byte
local cast = ffi.cast
local find = string.find
local floor = math.floor
local format = string.format
local gsub = string.gsub
local ipairs = ipairs
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

local BACKSLASH = byte("\\")
local LETTER_U = byte("u")

local MARK = "[%d bytes left out]"

-- Work between two pauses, in bytes that are looked at: one to two
-- milliseconds. A place that may be cut is as much work as so many bytes.
local WORK_A_TURN = 524288
local WORK_OF_A_PLACE = 2048

local M = {}


-- @return whether a backslash begins an escape: it is not itself escaped
local function begins_escape(text, pos)
  local before = pos - 1
  while byte(text, before) == BACKSLASH do
    before = before - 1
  end

  return (pos - before) % 2 == 1
end


-- @return the last position up to `pos` before which a JSON string may be cut:
-- not in an escape, not in a character
local function boundary(text, pos)
  local window = max(pos - 5, 1)
  local at = match(sub(text, window, pos - 1), "^.*()\\")

  if at then
    at = window + at - 1
    local length = byte(text, at + 1) == LETTER_U and 6 or 2
    if at + length > pos and begins_escape(text, at) then
      pos = at
    end
  end

  if byte(text, pos) == BACKSLASH then
    -- nor between the halves of a surrogate pair
    local is_half = find(sub(text, pos - 6, pos - 1),
                         "^\\u[dD][89abAB]%x%x$") ~= nil
    return is_half and begins_escape(text, pos - 6) and pos - 6 or pos
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
  local first = boundary(text, from + 1 + head)
  local last = boundary(text, to - tail) - 1

  return { from = first, to = last, mark = format(MARK, last - first + 1) }
end


local function saved(edit)
  return edit.to - edit.from + 1 - #edit.mark
end


local function apply(text, edits)
  if not edits[1] then
    return text
  end

  local bytes = cast("const char *", text)
  local out = buffer.new()
  local from = 0
  for _, edit in ipairs(edits) do
    out:putcdata(bytes + from, edit.from - 1 - from)
    out:put(edit.mark)
    from = edit.to
  end
  out:putcdata(bytes + from, #text - from)

  local result = out:tostring()
  out:free()

  return result
end


-- Cuts what nobody reads, and then long texts until enough is cut.
-- @param places see json_length
-- @return the text, shorter or not, and where the byte `pos` of it is now; what
-- was cut behind it does not matter
local function cut_places(text, places, limit, work, pos)
  local surplus = #text - limit

  for _, place in ipairs(places) do
    local from, to = place.from, place.to
    work(WORK_OF_A_PLACE)
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
      work(WORK_OF_A_PLACE)
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

  local edits = {}
  local moved = pos
  for _, place in ipairs(places) do
    local edit = place.edit
    edits[#edits + 1] = edit
    if edit and pos and edit.to < pos then
      moved = moved - saved(edit)
    end
  end

  return apply(text, edits), moved
end


-- Takes elements from the middle of a list: the first, which as a rule is the
-- system's, and the last ones stay.
-- @param open position of the list's bracket
local function cut_elements(text, open, limit, work)
  -- with the mark, and its quotes
  local bytes = #text - limit + #MARK + 24
  local from, to = json_length.new(text, LONG_BYTES, work):middle(open, bytes)
  if not from then
    return text
  end

  return apply(text, { { from = from, to = to,
                         mark = '"' .. format(MARK, to - from + 1) .. '"' } })
end


local function shorten(body, limit, work)
  local look = json_length.new(body, LONG_BYTES, work)
  if not look:look() then
    return body
  end

  local list = look.list
  local text, open = cut_places(body, look.places, limit, work,
                                list and list.from)
  if #text > limit and open then
    text = cut_elements(text, open, limit, work)
  end

  return text
end


-- @param body a request body that is longer than `limit`
-- @param pause called after every WORK_A_TURN; may yield
-- @return at most `limit` bytes of it
function M.shorten(body, limit, pause)
  local left = WORK_A_TURN
  local function work(bytes)
    left = left - bytes
    if left <= 0 then
      left = WORK_A_TURN
      pause()
    end
  end

  local text = limit >= LONG_BYTES and shorten(body, limit, work) or body

  return #text <= limit and text or sub(text, 1, limit)
end

M.WORK_A_TURN = WORK_A_TURN


return M
