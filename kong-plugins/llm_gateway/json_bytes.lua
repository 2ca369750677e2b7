-- Loops over the bytes of JSON text that anybody may have sent.
--
-- Each goes once over what it is given, a few nanoseconds a byte at most,
-- whatever stands there: LuaJIT compiles them, and what a byte means is looked
-- up in tables instead of decided by branches. string.find would be called a
-- million times a MiB for "[{},{},...]".
--
-- `p` points to the first byte of a piece, which the caller keeps alive;
-- positions begin with 0, `n` is the length of the piece.

local ffi = require "ffi"

local byte = string.byte
local cast = ffi.cast
local char = string.char
local ffi_string = ffi.string
local find = string.find
local min = math.min
local pcall = pcall
local sub = string.sub

-- Fails where another module has declared it already, which does as well.
pcall(ffi.cdef, [[
void *memchr(const void *bytes, int wanted, size_t length);
]])

local C = ffi.C

local const_bytes = ffi.typeof("const uint8_t *")

-- How far a string is read byte by byte before memchr is called.
local NEAR_BYTES = 64

-- How far an array or object is read before it is looked whether this is in a
-- long string, which can be leaped over.
local BLOCK_BYTES = 64

-- Strings of at least this many bytes that look like base64 or are data URLs
-- are pictures, sound or vectors and no text. The beginning tells.
local MIN_BLOB_BYTES = 512
local BLOB_HEAD_BYTES = 64

local QUOTE = byte('"')
local BACKSLASH = byte("\\")
local COMMA = byte(",")

-- Bytes by what they may be: a look into a table is what LuaJIT makes the
-- shortest loops of.
local function bytes_that_match(pattern)
  local set = ffi.new("bool[256]")
  for code = 0, 255 do
    set[code] = find(char(code), pattern) ~= nil
  end

  return set
end

local is_space = bytes_that_match("[ \t\r\n]")
local is_scalar = bytes_that_match("[%w+.-]")
-- neither of a string nor a bracket
local is_between = bytes_that_match('[^"%[%]{}]')
-- of a string, without meaning for its end
local is_plain = bytes_that_match('[^"\\]')
-- with the backslash, for a slash may be escaped
local is_base64 = bytes_that_match("[%w+/=_\\-]")

-- What a byte of an array or object does: by the place where it stands, plus
-- the byte.
local OUTSIDE, INSIDE, ESCAPE = 0, 256, 512
local next_place = ffi.new("int32_t[768]")
local depth_change = ffi.new("int32_t[768]")
for code = 0, 255 do
  next_place[INSIDE + code] = INSIDE
  next_place[ESCAPE + code] = INSIDE
end
next_place[OUTSIDE + QUOTE] = INSIDE
next_place[INSIDE + QUOTE] = OUTSIDE
next_place[INSIDE + BACKSLASH] = ESCAPE
depth_change[OUTSIDE + byte("{")] = 1
depth_change[OUTSIDE + byte("[")] = 1
depth_change[OUTSIDE + byte("}")] = -1
depth_change[OUTSIDE + byte("]")] = -1

local M = {
  -- where a piece of an array or object ends
  OUTSIDE = OUTSIDE,
  INSIDE = INSIDE,
  ESCAPE = ESCAPE,
}


-- @return position of the first byte that is no white space, n if there is none
function M.skip_space(p, i, n)
  while i < n and is_space[p[i]] do
    i = i + 1
  end

  return i
end


-- @return position of the next quote or bracket, n if there is none
function M.skip_between(p, i, n)
  while i < n and is_between[p[i]] do
    i = i + 1
  end

  return i
end


-- @param i position in a string
-- @return the position behind its closing quote and true; or, when the piece
-- ends before it, n, or n + 1 when the next byte belongs to an escape
function M.skip_string(p, i, n)
  while i < n do
    -- Where escapes are near each other, byte by byte.
    local near = min(i + NEAR_BYTES, n)
    while i < near and is_plain[p[i]] do
      i = i + 1
    end

    if i < near then
      if p[i] == QUOTE then
        return i + 1, true
      end
      i = i + 2

    elseif i < n then
      -- Long stretches in leaps from quote to quote.
      local at = C.memchr(p + i, QUOTE, n - i)
      local quote = n
      if at ~= nil then
        quote = cast(const_bytes, at) - p
      end

      -- What is in front of it is escaped by an odd number of backslashes.
      -- They are counted no further than to where we came from, so that all
      -- stays linear.
      local before = quote - 1
      while before >= i and p[before] == BACKSLASH do
        before = before - 1
      end
      local is_escaped = (quote - 1 - before) % 2 == 1

      if quote == n then
        return is_escaped and n + 1 or n, false
      end

      i = quote + 1
      if not is_escaped then
        return i, true
      end
    end
  end

  return i, false
end


-- @return position behind a number or a word
function M.skip_scalar(p, i, n)
  while i < n and is_scalar[p[i]] do
    i = i + 1
  end

  return i
end


-- Whether a byte may begin or continue a number or a word.
function M.is_scalar(code)
  return is_scalar[code]
end


-- Goes on in an array or an object, outside strings.
-- @param depth how deep this is; it ends where the depth gets 1 or above
-- `max_depth`
-- @return position, depth, and OUTSIDE; or INSIDE, also in the middle of the
-- piece, when this is in a string that may be long; or ESCAPE when the piece
-- ends between a backslash and its byte
function M.skip_structure(p, i, n, depth, max_depth)
  local place = OUTSIDE

  while i < n do
    local stop = min(i + BLOCK_BYTES, n)
    while i < stop and depth > 1 and depth <= max_depth do
      local at = place + p[i]
      depth = depth + depth_change[at]
      place = next_place[at]
      i = i + 1
    end

    if place == INSIDE or depth == 1 or depth > max_depth then
      return i, depth, place
    end
  end

  return i, depth, place
end


-- Goes on in an array or an object until a comma that stands right in it.
-- @param depth 2 is in it; it ends where the depth gets 1
-- @param place where the last piece of it ended: OUTSIDE, INSIDE or ESCAPE
-- @return position of the comma, behind the end, or n; depth, and place
function M.next_comma(p, i, n, depth, place)
  while i < n and depth > 1 do
    local code = p[i]
    if code == COMMA and depth == 2 and place == OUTSIDE then
      break
    end

    local at = place + code
    depth = depth + depth_change[at]
    place = next_place[at]
    i = i + 1
  end

  return i, depth, place
end


-- Whether a string is no text.
-- @param i position of its first byte, or near it
-- @param length what is there of it
-- @param is_cut whether it goes on in the next piece
local function is_blob(p, i, length, is_cut)
  if length < (is_cut and BLOB_HEAD_BYTES or MIN_BLOB_BYTES) then
    return false
  end

  if ffi_string(p + i, 5) == "data:" then
    return true
  end

  for at = i, i + BLOB_HEAD_BYTES - 1 do
    if not is_base64[p[at]] then
      return false
    end
  end

  return true
end


-- As Python's json.detect_encoding does.
-- @param text the beginning of a JSON text
-- @return whether it is UTF-16 or UTF-32
function M.is_other_encoding(text)
  local mark = sub(text, 1, 2)
  if mark == "\255\254" or mark == "\254\255"
    or sub(text, 1, 4) == "\0\0\254\255"
  then
    return true
  end

  return #text >= 4 and (byte(text, 1) == 0 or byte(text, 2) == 0)
end


-- Counts a string that is no text in counter.blob_bytes.
-- @param from a position in it, near its beginning
-- @param i behind its closing quote
function M.note_string(counter, p, from, i)
  local length = i - 1 - from
  if is_blob(p, from, length) then
    counter.blob_bytes = counter.blob_bytes + length
  end
end


-- The same for a string that goes on in the next piece: counter.in_blob tells
-- then.
-- @param from nil when it began in an earlier one
function M.string_ends_piece(counter, p, from, n)
  if counter.in_blob then
    counter.blob_bytes = counter.blob_bytes + n
  elseif from and is_blob(p, from, n - from, true) then
    counter.in_blob = true
    counter.blob_bytes = counter.blob_bytes + n - from
  end
end


return M
