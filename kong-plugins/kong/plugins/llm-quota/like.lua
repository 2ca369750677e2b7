-- SQL's LIKE without an escape character, as the collector matches models:
-- `%` stands for any text, `_` for one character.
--
-- A pattern is walked once for each place in the text at most, whatever stands
-- in it.

local byte = string.byte

local PERCENT = byte("%")
local UNDERSCORE = byte("_")

local M = {}


-- @return position of the character behind the one at i, in UTF-8; of what is
-- none a byte counts as one
local function behind(text, i)
  local c = byte(text, i)
  local length = c < 0xC0 and 1 or c < 0xE0 and 2 or c < 0xF0 and 3 or 4
  for k = i + 1, i + length - 1 do
    local next_byte = byte(text, k)
    if not next_byte or next_byte < 0x80 or next_byte > 0xBF then
      return k
    end
  end

  return i + length
end


-- @return whether the whole text is as the pattern has it
function M.matches(pattern, text)
  if pattern == "%" or pattern == text then
    return true
  end

  local i, k = 1, 1
  local percent_at, tried
  while i <= #text do
    local c = byte(pattern, k)
    if c == PERCENT then
      percent_at, tried = k, i
      k = k + 1
    elseif c == UNDERSCORE then
      i = behind(text, i)
      k = k + 1
    elseif c ~= nil and c == byte(text, i) then
      i = i + 1
      k = k + 1
    elseif percent_at then
      -- The last % takes one more character.
      tried = behind(text, tried)
      i, k = tried, percent_at + 1
    else
      return false
    end
  end

  while byte(pattern, k) == PERCENT do
    k = k + 1
  end

  return k > #pattern
end


return M
