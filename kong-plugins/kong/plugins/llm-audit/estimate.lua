-- What a call took where the server does not say: `llm.estimated`, from what
-- passes the gateway. For clients that hang up before the usage comes, servers
-- that report none, answers that never came.
--
-- The formula, on purpose no more than this:
--   prompt_tokens: the bytes of the request, without strings that are pictures,
--   sound or vectors, by four. Prose has three to five bytes a token in most
--   languages; a request of short messages has more frame than prose.
--   completion_tokens: of a stream the events that bring something, each of
--   which has one token or more, without the first, which has none; of other
--   answers the bytes by four.
--
-- Invariant: never beside counts that the server reported. What counts as
-- reported is a count above zero in an object "usage".

local apis = require "llm_gateway.api"

local byte = string.byte
local find = string.find
local setmetatable = setmetatable
local sub = string.sub

local GENERATES = apis.GENERATES
local TAKES_TOKENS = apis.TAKES_TOKENS

-- What is remembered of a chunk that ends in the middle of a usage.
local CARRY_BYTES = 512

local USAGE = '"usage"'

-- As much of it may stand at the end of a chunk.
local CUT_USAGE_BYTES = #USAGE - 1

local LF = byte("\n")
local OPEN_BRACKET = byte("[")

-- By what an event that brings something is told, where there are events of
-- many kinds.
local BRINGS = {
  responses = ".delta\n",
  messages = "content_block_delta\n",
}

local M = {}

local Meter = {}
Meter.__index = Meter


-- @param api of the call
-- @param is_stream whether the answer is an event stream
-- @return a meter, nil for APIs that take no tokens
function M.new(api, is_stream)
  if not TAKES_TOKENS[api] then
    return nil
  end

  return setmetatable({
    api = api,
    is_stream = is_stream,
    bytes = 0,
    events = 0,
    has_usage = false,
    -- whether the chunk before ended in the middle of a line
    is_cut = false,
    -- its end, where a usage may go on
    carry = nil,
  }, Meter)
end


local function find_usage(self, text)
  local at, last = find(text, USAGE, 1, true)

  while at do
    if find(text, '^%s*:%s*{[^}]-_tokens"%s*:%s*"?[1-9]', last + 1) then
      self.has_usage = true
      return
    end

    at, last = find(text, USAGE, last, true)
  end
end


-- @return whether a usage may begin in the text and go on behind it
local function is_usage_cut(text)
  return find(text, '"', -CUT_USAGE_BYTES, true) ~= nil
         or find(text, USAGE, -CARRY_BYTES, true) ~= nil
end


-- Looks for the usage also where two chunks meet. They are put together only
-- where it may be: copying every chunk took longer than looking through it.
local function look_for_usage(self, chunk, is_cut)
  local carry = self.carry
  local text = carry and carry .. chunk or chunk
  find_usage(self, text)

  self.carry = is_cut and not self.has_usage and is_usage_cut(text)
               and sub(text, -CARRY_BYTES) or nil
end


-- Counts the events of data other than [DONE].
local function count_data(self, text, is_line_start)
  local _, last
  if is_line_start and sub(text, 1, 5) == "data:" then
    last = 5
  else
    _, last = find(text, "\ndata:", 1, true)
  end

  while last do
    local value = find(text, "[^ ]", last + 1)
    if not value or byte(text, value) ~= OPEN_BRACKET then
      self.events = self.events + 1
    end
    _, last = find(text, "\ndata:", last + 1, true)
  end
end


local function count_marks(self, text, mark)
  local _, last = find(text, mark, 1, true)
  while last do
    self.events = self.events + 1
    _, last = find(text, mark, last + 1, true)
  end
end


-- @param chunk the next piece of the answer
function Meter:put(chunk)
  self.bytes = self.bytes + #chunk
  local is_line_start = not self.is_cut
  local is_cut = byte(chunk, -1) ~= LF
  self.is_cut = is_cut

  if not self.has_usage then
    look_for_usage(self, chunk, is_cut)
  end

  if self.is_stream then
    local mark = BRINGS[self.api]
    if mark then
      count_marks(self, chunk, mark)
    else
      count_data(self, chunk, is_line_start)
    end
  end
end


local function completion_of(meter)
  if not GENERATES[meter.api] then
    return 0
  end

  if not meter.is_stream then
    return apis.tokens_of(meter.bytes)
  end

  local first = BRINGS[meter.api] and 0 or 1
  return meter.events > first and meter.events - first or 0
end


-- @param text_bytes of the request
-- @param meter nil when no answer came
-- @return { prompt_tokens, completion_tokens }, nil where the server reported
-- them, or may still do so
function M.of(api, text_bytes, meter)
  if not TAKES_TOKENS[api] or meter and meter.has_usage then
    return nil
  end

  -- One that goes on in the background reports its usage to whoever fetches it.
  if api == "responses" and meter and not meter.is_stream then
    return nil
  end

  return {
    prompt_tokens = apis.tokens_of(text_bytes),
    completion_tokens = meter and completion_of(meter) or 0,
  }
end


return M
