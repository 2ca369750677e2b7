-- Makes an event stream short by keeping what its events add: one event with
-- the texts of many joined, where those differ in nothing else.
--
-- A stream of vLLM takes some 220 bytes a token, of which the token is four.
-- What comes out is an event stream of the same API still, and its events add
-- up to the same answer: whoever reads it need not know.
--
-- Rules
--   Events are joined that only append text (see TEXTS), and are the same but
--   for that text and for what changes with every event: running counts, of
--   which the last stay, and numbers of events. All others stay as they are,
--   in their place; those that are joined in between never pass them.
--   Texts are joined as they are written, with their escapes.
--   Lists that grow with every token (see LISTS) are left out: they are much
--   longer than the text. `left_out` tells.
--   The last event of /v1/responses repeats the whole answer: nothing before it
--   is needed then.
--   What is no JSON, too deep, or of an API that is not known stays as it is.
--
-- Work: an event that fits an earlier one is compared and cut, about 1 µs; one
-- that does not is walked once. No event is decoded.

local sse = require "kong.plugins.llm-audit.sse"

local byte = string.byte
local concat = table.concat
local find = string.find
local gsub = string.gsub
local ipairs = ipairs
local match = string.match
local pairs = pairs
local setmetatable = setmetatable
local sub = string.sub
local tonumber = tonumber

-- Where events have text that is to be appended. Lists are no step of a path.
local TEXTS = {
  ["choices.text"] = true,
  ["choices.delta.content"] = true,
  ["choices.delta.reasoning"] = true,
  ["choices.delta.reasoning_content"] = true,
  ["choices.delta.refusal"] = true,
  ["choices.delta.function_call.arguments"] = true,
  ["choices.delta.tool_calls.function.arguments"] = true,
  ["choices.delta.tool_calls.custom.input"] = true,
  ["delta"] = true,
  ["delta.text"] = true,
  ["delta.thinking"] = true,
  ["delta.signature"] = true,
  ["delta.partial_json"] = true,
}

local LISTS = {
  ["logprobs"] = true,
  ["choices.logprobs"] = true,
  ["choices.token_ids"] = true,
}

-- With a value other than null the event does more than to append.
local ONCE = {
  ["error"] = true,
  ["message"] = true,
  ["response"] = true,
  ["choices.message"] = true,
  ["choices.finish_reason"] = true,
  ["choices.stop_reason"] = true,
}

-- Lists of which an event that is joined has one element.
local SINGLES = {
  ["choices"] = true,
  ["choices.delta.tool_calls"] = true,
}

-- Numbers that say, with its path, where a text goes; 0 where they are missing.
local INDEXES = {
  "choices.index",
  "choices.delta.tool_calls.index",
  "index",
  "output_index",
  "content_index",
  "summary_index",
}

local is_index = {}
for _, path in ipairs(INDEXES) do
  is_index[path] = true
end

local APPENDING_TYPE = "%.delta$"
local TERMINAL_TYPES = {
  ["response.completed"] = true,
  ["response.incomplete"] = true,
  ["response.failed"] = true,
}

-- What stands in a place that differs from event to event.
local TEXT, LIST, COUNTS, NUMBER, NOISE = 1, 2, 3, 4, 5

-- Events of tokens have some hundred bytes; with the log probabilities of 20
-- candidates a few thousand. Larger ones stay as they are.
local MAX_WALKED_BYTES = 65536
local MAX_DEPTH = 16

-- Kinds of events that are joined at the same time: choices that take turns,
-- each with its own number.
local MAX_OPEN = 16

local QUOTE = byte('"')
local BACKSLASH = byte("\\")
local OPEN_BRACE = byte("{")
local CLOSE_BRACE = byte("}")
local OPEN_BRACKET = byte("[")
local CLOSE_BRACKET = byte("]")
local COLON = byte(":")
local COMMA = byte(",")

local M = {}

local Stream = {}
Stream.__index = Stream


-- @param out(text) takes what is kept, in whole events
-- @param restart() forgets all that `out` was given
function M.new(out, restart)
  return setmetatable({
    out = out,
    restart = restart,
    -- what was left out: "logprobs", or nil
    left_out = nil,
    -- kinds of events that are being joined, in the order of their first ones
    open = {},
  }, Stream)
end


-- @param pos position of the opening quote, or of any byte in the string
-- @return position of the closing quote
local function string_end(text, pos)
  local at = find(text, '["\\]', pos + 1)
  while at and byte(text, at) == BACKSLASH do
    at = find(text, '["\\]', at + 2)
  end

  return at
end


local function skip_space(text, pos)
  return find(text, "[^ \t\r\n]", pos)
end


local walk


local function note(found, path, kind, from, to)
  if kind == TEXT and found[path] then
    -- Two texts for one place: in which order is not ours to say.
    found.is_single = true
  end

  found[path] = true
  found[#found + 1] = { kind = kind, path = path, from = from,
                          to = to }
end


local function walk_object(found, text, pos, path, depth)
  pos = skip_space(text, pos + 1)
  if not pos then
    return nil
  end
  if byte(text, pos) == CLOSE_BRACE then
    return pos + 1
  end

  while true do
    if not pos or byte(text, pos) ~= QUOTE then
      return nil
    end
    local key_end = string_end(text, pos)
    local colon = key_end and skip_space(text, key_end + 1)
    if not colon or byte(text, colon) ~= COLON then
      return nil
    end

    local inner
    if path then
      local key = sub(text, pos + 1, key_end - 1)
      inner = path == "" and key or path .. "." .. key
    end

    pos = walk(found, text, colon + 1, inner, depth + 1)
    pos = pos and skip_space(text, pos)
    local after = pos and byte(text, pos)
    if after == CLOSE_BRACE then
      return pos + 1
    end
    if after ~= COMMA then
      return nil
    end
    pos = skip_space(text, pos + 1)
  end
end


local function walk_list(found, text, pos, path, depth)
  pos = skip_space(text, pos + 1)
  if not pos then
    return nil
  end
  if byte(text, pos) == CLOSE_BRACKET then
    return pos + 1
  end

  if path and not SINGLES[path] then
    found.is_single = true
  end

  local elements = 0
  while true do
    elements = elements + 1
    if elements == 2 and path then
      found.is_single = true
    end

    pos = walk(found, text, pos, path, depth + 1)
    pos = pos and skip_space(text, pos)
    local after = pos and byte(text, pos)
    if after == CLOSE_BRACKET then
      return pos + 1
    end
    if after ~= COMMA then
      return nil
    end
    pos = pos + 1
  end
end


-- Walks a value and notes what differs from event to event.
-- @param path of the value; nil where nothing is noted
-- @return position behind the value, nil when it is not JSON
walk = function(found, text, pos, path, depth)
  pos = skip_space(text, pos)
  if not pos or depth > MAX_DEPTH then
    return nil
  end

  local first = byte(text, pos)
  local after

  if path and (LISTS[path] or path == "usage")
    and (first == OPEN_BRACE or first == OPEN_BRACKET)
  then
    after = walk(found, text, pos, nil, depth)
    if after then
      note(found, path, path == "usage" and COUNTS or LIST, pos, after - 1)
    end
    return after
  end

  if first == QUOTE then
    local last = string_end(text, pos)
    if not last then
      return nil
    end
    if TEXTS[path] then
      note(found, path, TEXT, pos + 1, last - 1)
    elseif path == "type" then
      found.type = sub(text, pos + 1, last - 1)
    elseif path == "obfuscation" then
      note(found, path, NOISE, pos + 1, last - 1)
    end
    after = last + 1

  elseif first == OPEN_BRACE then
    after = walk_object(found, text, pos, path, depth)

  elseif first == OPEN_BRACKET then
    after = walk_list(found, text, pos, path, depth)

  else
    local _, last = find(text, "^[%w.+-]+", pos)
    if not last then
      return nil
    end
    if path == "sequence_number" then
      note(found, path, NUMBER, pos, last)
    elseif is_index[path] then
      found.indexes[path] = tonumber(sub(text, pos, last))
    end
    after = last + 1
  end

  if after and ONCE[path] and sub(text, pos, after - 1) ~= "null" then
    found.is_single = true
  end

  return after
end


-- Whether events like this one are joined.
local function appends(found)
  if found.is_single then
    return false
  end

  if found.type then
    if found.type ~= "content_block_delta"
      and not find(found.type, APPENDING_TYPE)
    then
      return false
    end
  end

  for _, hole in ipairs(found) do
    if hole.kind == TEXT then
      return true
    end
  end

  return false
end


-- @param event text of an event
-- @return a kind of event, of which this is the first one
local function new_kind(event, found)
  local kind = { holes = #found, places = {} }
  local from = 1

  local numbers = {}
  for i, path in ipairs(INDEXES) do
    numbers[i] = found.indexes[path] or 0
  end
  local place = concat(numbers, " ")

  for i, hole in ipairs(found) do
    kind[i] = {
      kind = hole.kind,
      before = sub(event, from, hole.from - 1),
      -- of texts all, of others the one that counts
      values = { sub(event, hole.from, hole.to) },
      -- a list is more than []
      has_elements = hole.to - hole.from > 1,
    }
    from = hole.to + 1

    if hole.kind == TEXT then
      kind.places[hole.path .. " " .. place] = true
    end
  end

  kind.rest = sub(event, from)
  return kind
end


local function value_end(what, text, pos)
  if what == TEXT or what == NOISE then
    local last = string_end(text, pos - 1)
    return last and last - 1
  end

  if what == NUMBER then
    local _, last = find(text, "^%d+", pos)
    return last
  end

  if what == COUNTS then
    local _, last = find(text, "^%b{}", pos)
    return last
  end

  local after = walk(nil, text, pos, nil, 0)
  return after and after - 1
end


-- Half of a surrogate pair that the next text may complete, which it would not
-- if it stood in an event of its own.
local function ends_in_half_a_character(text)
  return byte(text, -6) == BACKSLASH
         and find(text, "\\u[dD][89abAB]%x%x$") ~= nil
end


local starts, ends = {}, {}


-- Takes the event in text[from..to] into `kind`, if it is of that kind.
local function join(kind, text, from, to)
  local pos = from

  for i = 1, kind.holes do
    local hole = kind[i]
    local before = hole.before
    local value_from = pos + #before
    if sub(text, pos, value_from - 1) ~= before then
      return false
    end

    local value_to = value_end(hole.kind, text, value_from)
    if not value_to or value_to > to then
      return false
    end
    if hole.kind == TEXT
      and ends_in_half_a_character(hole.values[#hole.values])
    then
      return false
    end

    starts[i], ends[i] = value_from, value_to
    pos = value_to + 1
  end

  if sub(text, pos, to) ~= kind.rest then
    return false
  end

  for i = 1, kind.holes do
    local values = kind[i].values
    local what = kind[i].kind
    if what == TEXT then
      values[#values + 1] = sub(text, starts[i], ends[i])
    elseif what == COUNTS then
      values[1] = sub(text, starts[i], ends[i])
    elseif what == LIST and ends[i] - starts[i] > 1 then
      kind[i].has_elements = true
    end
  end

  return true
end


-- Whether a text of `kind` goes where one of an open kind goes: those must come
-- out in their order.
local function meets(open, kind)
  for _, other in ipairs(open) do
    for place in pairs(kind.places) do
      if other.places[place] then
        return true
      end
    end
  end

  return false
end


local function emit(self, kind)
  local parts = {}

  for i = 1, kind.holes do
    local hole = kind[i]
    local what = hole.kind
    local value = hole.values[1]

    if what == TEXT then
      value = concat(hole.values)
    elseif what == NOISE then
      value = ""
    elseif what == LIST and hole.has_elements then
      value = "null"
      self.left_out = "logprobs"
    end

    parts[#parts + 1] = hole.before
    parts[#parts + 1] = value
  end

  parts[#parts + 1] = kind.rest
  self.out(concat(parts))
end


-- Gives out what is being joined. To be called before anything that is not.
function Stream:flush()
  local open = self.open
  if open[1] then
    for _, kind in ipairs(open) do
      emit(self, kind)
    end
    self.open = {}
  end
end


-- @return the event without comments and fields that mean nothing here, and
-- where its data begins; no position when that is no object, or several lines
local function normalized(event)
  local data = match(event, "^data: ?(){")
               or match(event, "^event:[^\r\n]*\r?\ndata: ?(){")
  if data then
    return event, data
  end

  local short = gsub("\n" .. event, "\n:[^\n]*", "")
  short = gsub(short, "\nid:[^\n]*", "")
  short = sub(gsub(short, "\nretry:[^\n]*", ""), 2)

  return short, match(short, "^data: ?(){")
                or match(short, "^event:[^\r\n]*\r?\ndata: ?(){")
end


local function is_terminal(event)
  local kind = match(event, "^event: ?(response%.%a+)\r?\n")
  if not kind then
    kind = match(sub(event, 1, 200), '"type": ?"(response%.%a+)"')
           or match(sub(event, -200), '"type": ?"(response%.%a+)"')
  end

  return TERMINAL_TYPES[kind] and find(event, '"response"', 1, true) ~= nil
end


-- An event that fits none before it.
local function add_new(self, event)
  if is_terminal(event) then
    self.open = {}
    self.left_out = nil
    self.restart()
    self.out(event)
    return
  end

  local short, data = normalized(event)
  if data and #short <= MAX_WALKED_BYTES then
    for _, kind in ipairs(self.open) do
      if #short ~= #event and join(kind, short, 1, #short) then
        return
      end
    end

    local found = { indexes = {} }
    local after = walk(found, short, data, "", 0)
    if after and find(short, "^[ \t]*\r?\n\r?\n$", after) and appends(found)
    then
      local kind = new_kind(short, found)
      if #self.open == MAX_OPEN or meets(self.open, kind) then
        self:flush()
      end
      self.open[#self.open + 1] = kind
      return
    end
  end

  self:flush()
  self.out(event)
end


-- @param text whole events
function Stream:push(text)
  local from = 1
  local last = #text

  while from <= last do
    local to = sse.event_end(text, from) or last
    local open = self.open
    local is_taken = false

    for i = #open, 1, -1 do
      if join(open[i], text, from, to) then
        is_taken = true
        break
      end
    end

    if not is_taken then
      add_new(self, sub(text, from, to))
    end
    from = to + 1
  end
end


return M
