-- Where the events of a text/event-stream begin and end.
--
-- An event ends with an empty line. Lines end with LF or CRLF; a lone CR,
-- which the standard allows and nobody sends, ends no line here.

local byte = string.byte
local find = string.find
local match = string.match

local LF = byte("\n")
local CR = byte("\r")

local M = {}


-- @return position of the last byte of the first empty line that follows
-- another line, looking from `from`; nil when there is none
function M.blank_line_end(text, from)
  local lf = find(text, "\n", from, true)

  while lf do
    local next_byte = byte(text, lf + 1)
    if next_byte == LF then
      return lf + 1
    end

    if next_byte == CR and byte(text, lf + 2) == LF then
      return lf + 2
    end

    lf = find(text, "\n", lf + 1, true)
  end

  return nil
end


-- @param from where an event begins
-- @return position of the event's last byte, nil when it is not complete. An
-- empty line at `from` is an event of its own, without content.
function M.event_end(text, from)
  local first = byte(text, from)
  if first == LF then
    return from
  end

  if first == CR and byte(text, from + 1) == LF then
    return from + 1
  end

  return M.blank_line_end(text, from)
end


function M.ends_with_blank_line(text)
  if byte(text, -1) ~= LF then
    return false
  end

  local before = byte(text, -2)
  return before == LF or before == CR and byte(text, -3) == LF
end


-- @return position after the last complete event, 1 when there is none
function M.after_last_event(text)
  return match(text, "^.*\n\r?\n()") or 1
end


return M
