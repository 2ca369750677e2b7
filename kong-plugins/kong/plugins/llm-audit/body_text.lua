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
--   bytes each, and NUL is no text for anybody.
--
-- The bytes are looked at by a loop that LuaJIT compiles: 0.4 ns a byte, where
-- base64 and escaping its longer text take 2 more than plain text does. Without
-- the compiler it would be slower than base64, and everything is base64 then.

local ffi = require "ffi"

local band = bit.band
local cast = ffi.cast
local find = string.find
local floor = math.floor
local min = math.min
local sub = string.sub

-- How much of a body is looked at for a byte that is not of base64. JSON and
-- event streams have one at once.
local HEAD_BYTES = 64

-- Not of base64, neither of the standard alphabet nor of the one for URLs, nor
-- white space, which lenient decoders skip.
local NOT_BASE64 = "[^%w+/=_%s-]"

-- What a byte weighs: in the lowest bits what it takes in a JSON string, above
-- them whether it is no ASCII, or a control character, so that the sum over a
-- block tells the length and what there is.
local BLOCK_BYTES = 1024
local NOT_ASCII = 4096
local CONTROL = 2 * NOT_ASCII * BLOCK_BYTES

local weight_of = ffi.new("int32_t[256]")

for byte = 0, 255 do
  weight_of[byte] = byte >= 128 and NOT_ASCII + 1
                    or (byte < 32 or byte == 127) and CONTROL
                    or 1
end

-- cjson escapes the slash, too
for _, char in ipairs({ '"', "\\", "/", "\t", "\n", "\r" }) do
  weight_of[char:byte()] = 2
end

local M = {}


-- @return the length of `text` in JSON without its quotes, and whether it is
-- ASCII; nil when there are control characters in it
local function measure(text)
  local bytes = cast("const uint8_t *", text)
  local size = #text
  local length, is_ascii = 0, true

  for from = 0, size - 1, BLOCK_BYTES do
    local to = min(from + BLOCK_BYTES, size)
    local fours_end = to - (to - from) % 4

    -- four at a time, in two sums: three times as fast as one by one
    local some, others = 0, 0
    for i = from, fours_end - 4, 4 do
      some = some + weight_of[bytes[i]] + weight_of[bytes[i + 1]]
      others = others + weight_of[bytes[i + 2]] + weight_of[bytes[i + 3]]
    end
    for i = fours_end, to - 1 do
      some = some + weight_of[bytes[i]]
    end

    local weight = some + others
    if weight >= CONTROL then
      return nil
    end

    if weight >= NOT_ASCII then
      is_ascii = false
    end
    length = length + band(weight, NOT_ASCII - 1)
  end

  return length, is_ascii
end


-- @param is_utf8 tells whether a text is UTF-8
-- @param encode_base64
-- @return encode(body): the string for the log entry
function M.new(is_utf8, encode_base64)
  local works = jit.status() and is_utf8("\195\169{") and not is_utf8("\255{")
                and not is_utf8("\237\160\128")
  if not works then
    return encode_base64
  end

  return function(body)
    if not find(sub(body, 1, HEAD_BYTES), NOT_BASE64) then
      return encode_base64(body)
    end

    local length, is_ascii = measure(body)
    if not length or length > floor((#body + 2) / 3) * 4
      or not is_ascii and not is_utf8(body)
    then
      return encode_base64(body)
    end

    return body
  end
end


return M
