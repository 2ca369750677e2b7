-- The string that stands for a body in the log entry: the body itself where
-- that can be told from base64, else base64 of it.
--
-- Plain text is a quarter shorter, and who looks at an entry can read it. It is
-- taken only where all of this holds:
--   the body is UTF-8, for an entry has to be JSON;
--   one of its first bytes is in no alphabet of base64, so that whoever decodes
--   strictly cannot take it for base64;
--   JSON has to escape so little of it that it is not longer than base64, which
--   keeps the bound on an entry's size what it is with base64 alone;
--   it holds no control characters but tab and line ends: they would be six
--   bytes each, and NUL is no text for anybody. DEL is one that JSON takes.
--
-- Thirty-two bytes at a time are looked at and copied by a loop that LuaJIT
-- compiles, eight where something has to be escaped: 0.2 ns a byte of prose, 2
-- where every few bytes are a quote; cjson takes 3 of either. Without the
-- compiler it would be slower than base64, and everything is base64 then.

local buffer = require "string.buffer"
local ffi = require "ffi"

local band = bit.band
local bnot = bit.bnot
local bor = bit.bor
local bxor = bit.bxor
local byte = string.byte
local cast = ffi.cast
local find = string.find
local floor = math.floor
local sub = string.sub

-- How much of a body is looked at for a byte that is not of base64. JSON and
-- event streams have one at once.
local HEAD_BYTES = 64

-- What JSON begins with.
local OPEN_BRACE = ("{"):byte()
local OPEN_BRACKET = ("["):byte()

-- Not of base64, neither of the standard alphabet nor of the one for URLs, nor
-- white space, which lenient decoders skip.
local NOT_BASE64 = "[^%w+/=_%s-]"

local WORD_BYTES = 8
local BLOCK_BYTES = 4 * WORD_BYTES

-- The same byte eight times.
local ONES = 0x0101010101010101ULL
local HIGHEST_BITS = 0x80ULL * ONES
local TWOS = 0x02ULL * ONES
local BEHIND_BLANKS = 0x21ULL * ONES
local BACKSLASHES = 0x5cULL * ONES

local BACKSLASH = ("\\"):byte()

-- Made once: the name of a type is read anew each time where LuaJIT has not
-- compiled the code around it.
local const_bytes = ffi.typeof("const uint8_t *")
local const_words = ffi.typeof("const uint64_t *")
local words = ffi.typeof("uint64_t *")

-- What a byte becomes in a JSON string: how many backslashes, and what behind.
local backslashes = ffi.new("uint8_t[256]")
local letter_of = ffi.new("uint8_t[256]")
local is_control = ffi.new("uint8_t[256]")

for code = 0, 255 do
  letter_of[code] = code
  is_control[code] = code < 32 and 1 or 0
end
for char, letter in pairs({ ['"'] = '"', ["\\"] = "\\", ["\t"] = "t",
                            ["\n"] = "n", ["\r"] = "r" }) do
  local code = char:byte()
  backslashes[code] = 1
  letter_of[code] = letter:byte()
  is_control[code] = 0
end

-- All words of a text that were copied as they are, one over the other. In
-- memory, for LuaJIT would make an object of it in every round of the loop.
local seen = ffi.new("uint64_t[1]")

local M = {}


-- Writes a byte, and a backslash before it where there has to be one. Without a
-- branch: in text full of quotes that would be guessed wrongly every time.
-- @return where the next one goes
local function put(out, at, code)
  out[at] = BACKSLASH
  at = at + backslashes[code]
  out[at] = letter_of[code]

  return at + 1
end


-- The highest bit of a byte of the result is set in the first place where the
-- byte has to be escaped, and may be set behind it; all of them are 0 where
-- nothing has to be escaped. The other bits mean nothing.
local function special_bytes(word)
  -- Control characters and the quote, which becomes a blank: what is below "!".
  local moved = bxor(word, TWOS)
  -- The backslash becomes 0.
  local backslash = bxor(word, BACKSLASHES)

  return bor(band(moved - BEHIND_BLANKS, bnot(moved)),
             band(backslash - ONES, bnot(backslash)))
end


-- Writes eight bytes.
-- @return where the next one goes, and whether there are control characters
-- among them: 0 or 1
local function put_word(out, at, p)
  local word = cast(const_words, p)[0]
  seen[0] = bor(seen[0], word)

  if band(special_bytes(word), HIGHEST_BITS) == 0ULL then
    cast(words, out + at)[0] = word

    return at + WORD_BYTES, 0
  end

  at = put(out, at, p[0])
  at = put(out, at, p[1])
  at = put(out, at, p[2])
  at = put(out, at, p[3])
  at = put(out, at, p[4])
  at = put(out, at, p[5])
  at = put(out, at, p[6])
  at = put(out, at, p[7])

  return at, bor(is_control[p[0]], is_control[p[1]], is_control[p[2]],
                 is_control[p[3]], is_control[p[4]], is_control[p[5]],
                 is_control[p[6]], is_control[p[7]])
end


-- Writes `text` as it stands in a JSON string, without the quotes.
-- @param out where to; there have to be #text + most_escapes bytes, and two
-- blocks
-- @return the length, and whether it is ASCII; nil when there are control
-- characters, or more escapes, in it
local function escape(text, out, most_escapes)
  local bytes = cast(const_bytes, text)
  local size = #text
  local i, at = 0, 0
  local control
  seen[0] = 0

  while i <= size - BLOCK_BYTES do
    local from = cast(const_words, bytes + i)
    local a, b, c, d = from[0], from[1], from[2], from[3]
    local special = bor(special_bytes(a), special_bytes(b), special_bytes(c),
                        special_bytes(d))

    if band(special, HIGHEST_BITS) == 0ULL then
      local to = cast(words, out + at)
      to[0], to[1], to[2], to[3] = a, b, c, d
      seen[0] = bor(seen[0], a, b, c, d)
      i = i + BLOCK_BYTES
      at = at + BLOCK_BYTES

    else
      local p = bytes + i
      local controls
      at, controls = put_word(out, at, p)
      at, control = put_word(out, at, p + WORD_BYTES)
      controls = bor(controls, control)
      at, control = put_word(out, at, p + 2 * WORD_BYTES)
      controls = bor(controls, control)
      at, control = put_word(out, at, p + 3 * WORD_BYTES)
      controls = bor(controls, control)
      i = i + BLOCK_BYTES

      if controls ~= 0 or at - i > most_escapes then
        return nil
      end
    end
  end

  local controls = 0
  while i <= size - WORD_BYTES do
    at, control = put_word(out, at, bytes + i)
    controls = bor(controls, control)
    i = i + WORD_BYTES
  end

  while i < size do
    local code = bytes[i]
    at = put(out, at, code)
    controls = bor(controls, is_control[code])
    seen[0] = bor(seen[0], code + 0ULL)
    i = i + 1
  end

  if controls ~= 0 or at - size > most_escapes then
    return nil
  end

  return at, band(seen[0], HIGHEST_BITS) == 0ULL
end


-- @return whether nobody can take the body for base64
local function differs_from_base64(body)
  local first = byte(body)

  return first == OPEN_BRACE or first == OPEN_BRACKET
         or find(sub(body, 1, HEAD_BYTES), NOT_BASE64) ~= nil
end


-- @param is_utf8 tells whether a text is UTF-8
-- @param encode_base64
-- @return encode(body): the string for the log entry; and append(out, body),
-- which puts it into a string buffer as it stands between the quotes of a JSON
-- string, and returns what encode does
function M.new(is_utf8, encode_base64)
  local function append_base64(out, body)
    local text = encode_base64(body)
    out:put(text)

    return text
  end

  local works = jit.status() and is_utf8("\195\169{") and not is_utf8("\255{")
                and not is_utf8("\237\160\128")
  if not works then
    return encode_base64, append_base64
  end

  local function append(out, body)
    if not differs_from_base64(body) then
      return append_base64(out, body)
    end

    local size = #body
    local most_escapes = floor((size + 2) / 3) * 4 - size
    local length, is_ascii = escape(body, (out:reserve(size + most_escapes
                                                       + 2 * BLOCK_BYTES)),
                                    most_escapes)
    if not length or not is_ascii and not is_utf8(body) then
      return append_base64(out, body)
    end

    out:commit(length)

    return body
  end

  local function encode(body)
    local out = buffer.new()
    local text = append(out, body)
    out:free()

    return text
  end

  return encode, append
end


return M
