-- How many prompts a request of /v1/completions has: a list of texts, or of
-- lists of tokens, is a batch, of which each gets an answer of its own; and so
-- is a list of embeddings.
--
-- The list is walked in pieces and never decoded; a piece takes a nanosecond or
-- two a byte.

local ffi = require "ffi"

local byte = string.byte
local cast = ffi.cast
local max = math.max
local min = math.min

local PIECE_BYTES = 262144

local QUOTE = byte('"')
local BACKSLASH = byte("\\")
local COMMA = byte(",")
local OPEN_BRACE = byte("{")
local OPEN_BRACKET = byte("[")
local CLOSE_BRACE = byte("}")
local CLOSE_BRACKET = byte("]")
local SPACE = byte(" ")

local OUTSIDE, INSIDE, ESCAPE = 0, 1, 2

local M = {}


-- @param state { place, depth, commas, first } so far; first is what the first
-- element begins with
local function walk(state, text)
  local p, n = cast("const uint8_t *", text), #text
  local place, depth, commas = state.place, state.depth, state.commas
  local first = state.first

  for i = 0, n - 1 do
    local c = p[i]
    if not first and depth == 1 and c > SPACE then
      first = c
    end
    if place == ESCAPE then
      place = INSIDE
    elseif place == INSIDE then
      place = c == QUOTE and OUTSIDE or c == BACKSLASH and ESCAPE or INSIDE
    elseif c == QUOTE then
      place = INSIDE
    elseif c == OPEN_BRACKET or c == OPEN_BRACE then
      depth = depth + 1
    elseif c == CLOSE_BRACKET or c == CLOSE_BRACE then
      depth = depth - 1
    elseif c == COMMA and depth == 1 then
      commas = commas + 1
    end
  end

  state.place, state.depth, state.commas = place, depth, commas
  state.first = first
end


-- @param body of the request, see llm_gateway.request_body
-- @param member { from, to } of its `prompt`; nil where it has none
-- @param pause called after each piece; may yield
-- @return the number of prompts: 0 where there are none
function M.count(body, member, pause)
  if not member or member.text == "null" then
    return 0
  end

  if body:read(member.from, 1) ~= "[" then
    return 1
  end

  local state = { place = OUTSIDE, depth = 0, commas = 0 }
  local from = member.from
  while from <= member.to do
    local piece = body:read(from, min(PIECE_BYTES, member.to - from + 1))
    walk(state, piece)
    from = from + max(#piece, 1)
    if from <= member.to then
      pause()
    end
  end

  local is_batch = state.first == QUOTE or state.first == OPEN_BRACKET

  return is_batch and state.commas + 1 or 1
end


return M
