-- Finds the outermost members of a JSON object in text that comes in pieces,
-- without decoding it and without having it in memory.
--
-- Made for text that anybody may send. The work goes with the number of bytes:
-- a few nanoseconds each, in loops that LuaJIT compiles, whatever stands there.
-- What is kept is a key, and the values that were asked for, each within
-- MAX_VALUE_BYTES.
--
-- It reads as Python's json does, which is what vLLM reads requests with: a
-- UTF-8 mark may stand in front, blanks behind, NaN is a value. `verdict` tells
-- what the text is:
--   "object"     one whole JSON object, as far as its outside goes
--   "not_object" another JSON value, or nothing at all
--   "invalid"    no JSON; never said of text that is
--   "incomplete" it ends too early
-- or why it is not looked at any further, though a server may read it:
--   "not_utf8"   UTF-16 or UTF-32, which Python detects by itself
--   "trailing_bytes"   something stands behind the object
--   "too_deep"   more than MAX_DEPTH levels
--   "too_many_members" more than MAX_MEMBERS outermost members
--
-- What it is not: a validator. It sees that brackets balance and strings end,
-- not whether "[1 2]" is JSON.
--
-- Positions in what is found count the bytes of the whole text from 1; those in
-- a piece, here, from 0.

local ffi = require "ffi"
local json_bytes = require "llm_gateway.json_bytes"
local json_scan = require "llm_gateway.json_scan"

local byte = string.byte
local cast = ffi.cast
local ffi_string = ffi.string
local ipairs = ipairs
local max = math.max
local pairs = pairs
local setmetatable = setmetatable
local sub = string.sub

local ESCAPE = json_bytes.ESCAPE
local INSIDE = json_bytes.INSIDE
local OUTSIDE = json_bytes.OUTSIDE
local is_other_encoding = json_bytes.is_other_encoding
local is_scalar = json_bytes.is_scalar
local note_string = json_bytes.note_string
local skip_scalar = json_bytes.skip_scalar
local skip_space = json_bytes.skip_space
local skip_string = json_bytes.skip_string
local skip_structure = json_bytes.skip_structure
local string_ends_piece = json_bytes.string_ends_piece

-- Python 3.10 and 3.11 give up at about 995 levels, later versions at 1,490
-- and more. What is refused here no server of theirs would have read wrongly,
-- what passes all of them read; people nest five levels.
local MAX_DEPTH = 900

-- vLLM knows about a hundred fields. Each member costs more than its bytes do,
-- so that without a bound a body of nothing but keys would.
local MAX_MEMBERS = 4096

-- Of a value that was asked for. stream_options have some 50 bytes.
local MAX_VALUE_BYTES = 4096

-- The longest key of interest, each letter written as \u0000.
local MAX_KEY_BYTES = 120

local QUOTE = byte('"')
local BACKSLASH = byte("\\")
local COLON = byte(":")
local COMMA = byte(",")
local OPEN_BRACE = byte("{")
local CLOSE_BRACE = byte("}")
local OPEN_BRACKET = byte("[")

-- What is expected next.
local START = 1          -- the outermost value
local FIRST_KEY = 2      -- a key or the end of the object
local KEY = 3            -- a key
local IN_KEY = 4
local AFTER_KEY = 5      -- the colon
local VALUE = 6
local IN_STRING = 7      -- at any depth, or of a key that is too long
local IN_NESTED = 8
local IN_SCALAR = 9
local AFTER_VALUE = 10   -- a comma or the end of the object
local DONE = 11          -- the end of the text

local const_bytes = ffi.typeof("const uint8_t *")
local KeyBytes = ffi.typeof("uint8_t[" .. MAX_KEY_BYTES .. "]")

local M = {
  MAX_DEPTH = MAX_DEPTH,
  MAX_MEMBERS = MAX_MEMBERS,
  MAX_VALUE_BYTES = MAX_VALUE_BYTES,
}

local Outline = {}
Outline.__index = Outline


-- @param wanted set of the keys whose members are noted
-- @param unwanted set of the keys whose members are to be taken out, each one
-- @return the keys, as M.new wants them: made once, not for each text
function M.keys(wanted, unwanted)
  local first_bytes = { [BACKSLASH] = true }
  for _, keys in ipairs({ wanted, unwanted }) do
    for key in pairs(keys) do
      first_bytes[byte(key)] = true
    end
  end

  return { wanted = wanted, unwanted = unwanted, first_bytes = first_bytes }
end


-- @param keys see M.keys
function M.new(keys)
  return setmetatable({
    keys = keys,
    -- { from, to } of each unwanted member, with one comma beside it, in order
    dropped = {},
    -- key → { from, to, text, earlier }: the last member of that key, and the
    -- one before; the text is nil when it has more than MAX_VALUE_BYTES
    found = {},
    -- position of the outermost "{"
    open = nil,
    verdict = nil,
    -- bytes of strings that are no text
    blob_bytes = 0,

    state = START,
    -- bytes that came before this piece, and those of this one that belong to
    -- an escape
    base = 0,
    skip = 0,
    depth = 0,
    members = 0,
    key = KeyBytes(),
    key_length = 0,
    -- whether the string that is being read is a key, and whether a piece ended
    -- between a backslash of it and the byte behind
    is_key = false,
    is_key_cut = false,
    in_blob = false,
    -- what came in earlier pieces of the wanted member that is being read
    begun = "",
  }, Outline)
end


-- --- what is found ----------------------------------------------------------

local function end_key(self)
  self.members = self.members + 1

  local length = self.key_length
  self.key_length = 0
  if length == 0 or not self.keys.first_bytes[self.key[0]] then
    return
  end

  local key = json_scan.decode_string(ffi_string(self.key, length))

  if key and self.keys.wanted[key] then
    self.member = { key = key }
    self.begun = ""
  elseif key and self.keys.unwanted[key] then
    self.dropped[#self.dropped + 1] = { from = self.comma_at or self.key_at,
                                        is_first = not self.comma_at }
    self.is_dropping = true
  end
end


-- Takes up what this piece has of the member's value.
-- @param i position behind it
local function take_value(self, p, i)
  local member = self.member
  local from = max(member.from - 1 - self.base, 0)
  local begun = self.begun

  -- one byte more tells that there is too much
  if begun and #begun + i - from <= MAX_VALUE_BYTES then
    self.begun = begun .. ffi_string(p + from, i - from)
  else
    self.begun = nil
  end
end


local function end_value(self, p, i)
  local member = self.member
  if member then
    take_value(self, p, i)
    self.found[member.key] = {
      from = member.from,
      to = self.base + i,
      text = self.begun,
      earlier = self.found[member.key],
    }
    self.member = nil

  elseif self.is_dropping then
    self.dropped[#self.dropped].to = self.base + i
  end

  self.state = AFTER_VALUE
end


-- --- states that take one byte ----------------------------------------------

local steps = {}


steps[START] = function(self, c, i)
  if c == OPEN_BRACE then
    self.open = self.base + i + 1
    self.depth = 1
    self.state = FIRST_KEY
  else
    self.verdict = "not_object"
  end
end


local function begin_key(self, c, i)
  if c ~= QUOTE then
    self.verdict = "invalid"
    return
  end

  self.state = IN_KEY
  self.is_key = true
  self.key_at = self.base + i + 1
  if self.members >= MAX_MEMBERS then
    self.verdict = "too_many_members"
  end
end

steps[KEY] = begin_key


steps[FIRST_KEY] = function(self, c, i)
  if c == CLOSE_BRACE then
    self.state = DONE
  else
    begin_key(self, c, i)
  end
end


steps[AFTER_KEY] = function(self, c)
  self.state = VALUE
  if c ~= COLON then
    self.verdict = "invalid"
  end
end


steps[VALUE] = function(self, c, i)
  if self.member then
    self.member.from = self.base + i + 1
  end

  if c == QUOTE then
    self.state = IN_STRING
    self.string_from = i + 1

  elseif c == OPEN_BRACE or c == OPEN_BRACKET then
    self.state = IN_NESTED
    self.depth = 2

  elseif is_scalar(c) then
    self.state = IN_SCALAR

  else
    self.verdict = "invalid"
  end
end


steps[AFTER_VALUE] = function(self, c, i)
  self.state = c == COMMA and KEY or DONE
  self.comma_at = self.base + i + 1

  if self.is_dropping then
    self.is_dropping = false
    local member = self.dropped[#self.dropped]
    if member.is_first and c == COMMA then
      -- with the comma behind it; the next member is the first one then
      member.to = self.comma_at
      self.comma_at = nil
    end
  end

  if c ~= COMMA and c ~= CLOSE_BRACE then
    self.verdict = "invalid"
  end
end


steps[DONE] = function(self)
  self.verdict = "trailing_bytes"
end


-- --- states that take many --------------------------------------------------

local function in_key(self, p, i, n)
  local key, length = self.key, self.key_length

  while i < n do
    local c = p[i]

    if c == QUOTE then
      self.key_length = length
      self.is_key = false
      self.state = AFTER_KEY
      end_key(self)
      return i + 1
    end

    if length + 2 > MAX_KEY_BYTES then
      self.state = IN_STRING
      length = 0
      break
    end

    key[length] = c
    length = length + 1
    i = i + 1

    if c == BACKSLASH then
      if i == n then
        self.is_key_cut = true
        break
      end
      key[length] = p[i]
      length = length + 1
      i = i + 1
    end
  end

  self.key_length = length
  return i
end


local function in_string(self, p, i, n)
  local from = self.string_from
  self.string_from = nil

  local closed
  i, closed = skip_string(p, i, n)
  if not closed then
    string_ends_piece(self, p, from, n)
    return i
  end

  if self.in_blob then
    self.blob_bytes = self.blob_bytes + i - 1
    self.in_blob = false
  elseif from then
    note_string(self, p, from, i)
  end

  if self.is_key then
    self.is_key = false
    self.members = self.members + 1
    self.state = AFTER_KEY
  elseif self.depth > 1 then
    self.state = IN_NESTED
  else
    end_value(self, p, i)
  end

  return i
end


local function in_nested(self, p, i, n)
  local depth = self.depth
  local place

  repeat
    i, depth, place = skip_structure(p, i, n, depth, MAX_DEPTH)

    if place == INSIDE and i < n then
      local from = i
      local closed
      i, closed = skip_string(p, i, n)
      if closed then
        note_string(self, p, from, i)
        place = OUTSIDE
      else
        string_ends_piece(self, p, from, n)
      end
    end
  until i >= n or depth == 1 or depth > MAX_DEPTH

  self.depth = depth
  if depth == 1 then
    end_value(self, p, i)
  elseif depth > MAX_DEPTH then
    self.verdict = "too_deep"
  elseif place ~= OUTSIDE then
    self.state = IN_STRING
    if place == ESCAPE then
      return n + 1
    end
  end

  return i
end


-- @param text the next piece; the first one has four bytes, if there are so
-- many
function Outline:feed(text)
  if self.verdict then
    return
  end

  local n = #text
  local i = self.skip
  self.skip = 0

  if self.base == 0 then
    if is_other_encoding(text) then
      self.verdict = "not_utf8"
      return
    end
    if sub(text, 1, 3) == "\239\187\191" then
      i = 3
    end
  end

  local p = cast(const_bytes, text)

  if self.is_key_cut and n > 0 then
    self.is_key_cut = false
    self.key[self.key_length] = p[0]
    self.key_length = self.key_length + 1
    i = 1
  end

  while i < n and not self.verdict do
    local state = self.state

    if state == IN_STRING then
      i = in_string(self, p, i, n)

    elseif state == IN_NESTED then
      i = in_nested(self, p, i, n)

    elseif state == IN_KEY then
      i = in_key(self, p, i, n)

    elseif state == IN_SCALAR then
      i = skip_scalar(p, i, n)
      if i < n then
        end_value(self, p, i)
      end

    else
      i = skip_space(p, i, n)
      if i < n then
        steps[state](self, p[i], i)
        i = i + 1
      end
    end
  end

  if self.member and self.member.from and not self.verdict then
    take_value(self, p, n)
  end

  self.skip = max(i - n, 0)
  self.base = self.base + n
end


-- Says that nothing more comes, and so what the text is.
-- @return the verdict
function Outline:finish()
  if not self.verdict then
    local state = self.state
    self.verdict = state == DONE and "object"
                   or state == START and "not_object"
                   or "incomplete"
  end

  return self.verdict
end


return M
