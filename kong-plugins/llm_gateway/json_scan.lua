-- Finds the members of a JSON object in its raw text, without decoding it.
--
-- Positions are byte positions, first byte 1. Works on text that ends too
-- early: what is there is reported, then "incomplete".
--
-- It jumps: strings are crossed by looking for the closing quote, containers
-- by looking for the next bracket or quote, so the time goes with the number
-- of tokens and not with the length of the prompts.
--
-- What it is not: a validator. It sees that brackets balance and strings end,
-- not whether "[1 2]" is JSON. Who needs that asks a real parser.
-- No recursion: depth costs nothing.

local cjson = require "cjson.safe"

local byte = string.byte
local find = string.find
local sub = string.sub

local QUOTE = byte('"')
local BACKSLASH = byte("\\")
local COLON = byte(":")
local COMMA = byte(",")
local OPEN_BRACE = byte("{")
local CLOSE_BRACE = byte("}")
local OPEN_BRACKET = byte("[")
local CLOSE_BRACKET = byte("]")

local M = {
  INCOMPLETE = "incomplete",
  INVALID = "invalid",
  STOPPED = "stopped",
}


local function skip_space(text, pos)
  return find(text, "[^ \t\r\n]", pos)
end

M.skip_space = skip_space


-- @param pos position of the opening quote
-- @return position of the closing quote, nil when the text ends before it
local function string_end(text, pos)
  local quote = pos

  while true do
    quote = find(text, '"', quote + 1, true)
    if not quote then
      return nil
    end

    -- A quote is escaped by an odd number of backslashes. The count stops at
    -- the previous quote at the latest, so the whole stays linear.
    local before = quote - 1
    while byte(text, before) == BACKSLASH do
      before = before - 1
    end

    if (quote - 1 - before) % 2 == 0 then
      return quote
    end
  end
end


-- @param pos position of "{" or "["
local function container_end(text, pos)
  local depth = 0

  repeat
    pos = find(text, '["%[%]{}]', pos)
    if not pos then
      return nil, M.INCOMPLETE
    end

    local char = byte(text, pos)
    if char == QUOTE then
      pos = string_end(text, pos)
      if not pos then
        return nil, M.INCOMPLETE
      end

    elseif char == OPEN_BRACE or char == OPEN_BRACKET then
      depth = depth + 1

    else
      depth = depth - 1
    end

    pos = pos + 1
  until depth == 0

  return pos - 1
end


-- @return position of the value's last byte, or nil and why not
local function value_end(text, pos)
  local char = byte(text, pos)

  if char == QUOTE then
    local last = string_end(text, pos)
    if not last then
      return nil, M.INCOMPLETE
    end

    return last
  end

  if char == OPEN_BRACE or char == OPEN_BRACKET then
    return container_end(text, pos)
  end

  local _, last = find(text, "^[%w+.-]+", pos)
  if not last then
    return nil, M.INVALID
  end

  if last == #text then
    -- "12" may be the beginning of "123"
    return nil, M.INCOMPLETE
  end

  return last
end


-- @param raw what stands between the quotes of a string
-- @return what it says, nil when it is no string
local function decode_string(raw)
  if not find(raw, "\\", 1, true) then
    return raw
  end

  local decoded = cjson.decode('["' .. raw .. '"]')
  return decoded and decoded[1]
end

M.decode_string = decode_string


-- Keys are compared as what they mean: "str\u0065am" is "stream".
-- @return what the string from quote to quote says, nil when it is none
local function text_of(text, from, to)
  return decode_string(sub(text, from + 1, to - 1))
end

M.text_of = text_of


-- Calls visit(from, to) for each element of the array at `open`, until one
-- returns true, the array ends, or the text does.
-- @param open position of "["
function M.elements(text, open, visit)
  local pos = byte(text, open) == OPEN_BRACKET and skip_space(text, open + 1)

  while pos and byte(text, pos) ~= CLOSE_BRACKET do
    local to, err = value_end(text, pos)
    if err == M.INVALID or visit(pos, to) or not to then
      return
    end

    pos = skip_space(text, to + 1)
    if not pos or byte(text, pos) ~= COMMA then
      return
    end

    pos = skip_space(text, pos + 1)
  end
end


-- Calls visit(key, from, to) for each member of the object at `open`, in the
-- order of the text, repeated keys included. `to` is nil for a value that the
-- text does not hold to its end. A visit that returns true ends the walk.
-- @param open position of "{"
-- @return position of the closing brace, or nil and one of
-- M.INCOMPLETE, M.INVALID, M.STOPPED
function M.members(text, open, visit)
  if byte(text, open) ~= OPEN_BRACE then
    return nil, M.INVALID
  end

  local pos = skip_space(text, open + 1)
  if pos and byte(text, pos) == CLOSE_BRACE then
    return pos
  end

  while pos do
    if byte(text, pos) ~= QUOTE then
      return nil, M.INVALID
    end

    local key_end = string_end(text, pos)
    local colon = key_end and skip_space(text, key_end + 1)
    if not colon then
      return nil, M.INCOMPLETE
    end

    local key = text_of(text, pos, key_end)
    if not key or byte(text, colon) ~= COLON then
      return nil, M.INVALID
    end

    local from = skip_space(text, colon + 1)
    if not from then
      return nil, M.INCOMPLETE
    end

    local to, err = value_end(text, from)
    if err == M.INVALID then
      return nil, err
    end

    if visit(key, from, to) then
      return nil, M.STOPPED
    end

    pos = to and skip_space(text, to + 1)
    if not pos then
      return nil, M.INCOMPLETE
    end

    local char = byte(text, pos)
    if char == CLOSE_BRACE then
      return pos
    end

    if char ~= COMMA then
      return nil, M.INVALID
    end

    pos = skip_space(text, pos + 1)
  end

  return nil, M.INCOMPLETE
end


return M
