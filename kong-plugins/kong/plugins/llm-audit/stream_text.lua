-- Makes an event stream short by keeping what its events add: one event with
-- the texts of many joined, where those differ in nothing else.
--
-- A stream of vLLM takes some 220 bytes a token, of which the token is four.
-- What comes out is an event stream of the same API still, and its events add
-- up to the same answer: whoever reads it need not know.
--
-- Rules
--   Events are joined that only append text (see event_shape), and are the same
--   but for that text and for what changes with every event: running counts, of
--   which the last stay, and numbers of events. All others stay as they are, in
--   their place; those that are joined in between never pass them.
--   Texts are joined as they are written, with their escapes.
--   Lists that grow with every token (log probabilities, token ids) are left
--   out: they are much longer than the text. `left_out` tells.
--   The last event of /v1/responses repeats the whole answer, as a rule: then
--   nothing before it is needed.
--   What is no JSON, too deep, or of an API that is not known stays as it is.
--
-- Work: an event that fits an earlier one is compared and cut, about 1 µs; one
-- that does not is walked once. No event is decoded.

local event_shape = require "kong.plugins.llm-audit.event_shape"
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

local TERMINAL_TYPES = {
  ["response.completed"] = true,
  ["response.incomplete"] = true,
  ["response.failed"] = true,
}

local TEXT = event_shape.TEXT
local LIST = event_shape.LIST
local COUNTS = event_shape.COUNTS
local NUMBER = event_shape.NUMBER
local NOISE = event_shape.NOISE
local INDEXES = event_shape.INDEXES

local string_end = event_shape.string_end

-- Events of tokens have some hundred bytes; with the log probabilities of 20
-- candidates a few thousand. Larger ones stay as they are.
local MAX_WALKED_BYTES = 65536

-- Kinds of events that are joined at the same time: choices that take turns,
-- each with its own number.
local MAX_OPEN = 16

local BACKSLASH = byte("\\")

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
    -- how much text came in events that were joined
    text_bytes = 0,
  }, Stream)
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

  local after = event_shape.skip(text, pos)
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
      self.text_bytes = self.text_bytes + #value
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

  -- Some servers leave out there what they said before.
  return TERMINAL_TYPES[kind] and find(event, '"response"', 1, true)
         and find(event, '"output"%s*:%s*%[%s*[^%]%s]') ~= nil
end


-- An event that fits none before it.
local function add_new(self, event)
  if is_terminal(event) then
    self:flush()
    -- What is shorter than the text before it does not repeat it.
    if #event >= self.text_bytes then
      self.left_out = nil
      self.restart()
    end
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

    local found, after = event_shape.read(short, data)
    if found and find(short, "^[ \t]*\r?\n\r?\n$", after) then
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
