-- Finds the members of a JSON object from its end, when its beginning may be
-- missing.
--
-- Where a text begins in the middle of JSON, nothing tells whether that is
-- inside a string. From the end of a whole document everything can be told:
-- the last byte is the outermost brace, and every quote says by itself what
-- it is. A quote inside a string follows an odd number of backslashes, the
-- opening quote of a string none, the closing one an even number. So no text
-- inside a string, whatever it says, can pass for a member; and a text that
-- breaks off inside a string is found out at the first quote.
--
-- Works on the reversed text, where string.find jumps from quote to quote and
-- from bracket to bracket: the time goes with the number of tokens, once.
--
-- What it is not: a validator, as json_scan is none.

local json_scan = require "llm_gateway.json_scan"

local byte = string.byte
local find = string.find
local reverse = string.reverse

local QUOTE = byte('"')
local BACKSLASH = byte("\\")
local COLON = byte(":")
local COMMA = byte(",")
local OPEN_BRACE = byte("{")
local CLOSE_BRACE = byte("}")
local CLOSE_BRACKET = byte("]")

local INCOMPLETE = json_scan.INCOMPLETE
local INVALID = json_scan.INVALID
local STOPPED = json_scan.STOPPED

local skip_space = json_scan.skip_space

local M = {}


-- @return the number of backslashes behind `pos`, nil when the text ends with
-- them: then there may be more
local function backslashes(reversed, pos)
  local after = find(reversed, "[^\\]", pos + 1)

  return after and after - pos - 1
end


-- The functions below go through reversed text: "last" is where a value
-- begins in it, and the result where it ends.

-- @param last position of the closing quote
-- @return position of the opening quote, or nil and why not
local function string_start(reversed, last)
  local count = backslashes(reversed, last)
  if not count then
    return nil, INCOMPLETE
  end

  if count % 2 == 1 then
    return nil, INVALID
  end

  local quote = last + count
  repeat
    quote = find(reversed, '"', quote + 1, true)
    if not quote then
      return nil, INCOMPLETE
    end

    if byte(reversed, quote + 1) ~= BACKSLASH and quote < #reversed then
      return quote
    end

    count = backslashes(reversed, quote)
    if not count then
      return nil, INCOMPLETE
    end
  until count % 2 == 0

  return nil, INVALID
end


-- @param last position of "}" or "]"
local function container_start(reversed, last)
  local depth = 0
  local pos = last

  repeat
    pos = find(reversed, '["%[%]{}]', pos)
    if not pos then
      return nil, INCOMPLETE
    end

    local char = byte(reversed, pos)
    if char == QUOTE then
      local err
      pos, err = string_start(reversed, pos)
      if not pos then
        return nil, err
      end

    elseif char == CLOSE_BRACE or char == CLOSE_BRACKET then
      depth = depth + 1

    else
      depth = depth - 1
    end

    pos = pos + 1
  until depth == 0

  return pos - 1
end


local function value_start(reversed, last)
  local char = byte(reversed, last)

  if char == QUOTE then
    return string_start(reversed, last)
  end

  if char == CLOSE_BRACE or char == CLOSE_BRACKET then
    return container_start(reversed, last)
  end

  local _, first = find(reversed, "^[%w+.-]+", last)
  if not first then
    return nil, INVALID
  end

  if first == #reversed then
    return nil, INCOMPLETE
  end

  return first
end


local function visit_cut(visit, to)
  visit(nil, nil, to)

  return nil, INCOMPLETE
end


-- Calls visit(key, from, to) for each member of the object that ends the
-- text, the last one first. For a member that begins before the text does,
-- `key` and `from` are nil; it is the last to be visited. A visit that returns
-- true ends the walk.
-- @param text the end of a JSON document, up to its closing brace; white
-- space may follow
-- @return position of the opening brace, or nil and one of
-- json_scan.INCOMPLETE, json_scan.INVALID, json_scan.STOPPED
function M.members(text, visit)
  local reversed = reverse(text)
  local mirror = #text + 1

  local pos = skip_space(reversed, 1)
  if not pos or byte(reversed, pos) ~= CLOSE_BRACE then
    return nil, INVALID
  end

  pos = skip_space(reversed, pos + 1)
  if pos and byte(reversed, pos) == OPEN_BRACE then
    return mirror - pos
  end

  while pos do
    local first, err = value_start(reversed, pos)
    if err == INCOMPLETE then
      return visit_cut(visit, mirror - pos)
    end

    if not first then
      return nil, err
    end

    local colon = skip_space(reversed, first + 1)
    local key_last = colon and skip_space(reversed, colon + 1)
    if not key_last then
      return visit_cut(visit, mirror - pos)
    end

    if byte(reversed, colon) ~= COLON or byte(reversed, key_last) ~= QUOTE then
      return nil, INVALID
    end

    local key_first
    key_first, err = string_start(reversed, key_last)
    if err == INCOMPLETE then
      return visit_cut(visit, mirror - pos)
    end

    if not key_first then
      return nil, err
    end

    local key = json_scan.text_of(text, mirror - key_first, mirror - key_last)
    if not key then
      return nil, INVALID
    end

    if visit(key, mirror - first, mirror - pos) then
      return nil, STOPPED
    end

    pos = skip_space(reversed, key_first + 1)
    if not pos then
      return nil, INCOMPLETE
    end

    local char = byte(reversed, pos)
    if char == OPEN_BRACE then
      return mirror - pos
    end

    if char ~= COMMA then
      return nil, INVALID
    end

    pos = skip_space(reversed, pos + 1)
  end

  return nil, INCOMPLETE
end


return M
