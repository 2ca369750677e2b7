-- The token counts of an answer: which members are some, and which of several
-- reports counts.
--
-- Invariants
--   Counts are whole numbers, also as 61.0 or "61", of known names; of anything
--   else nothing comes out.
--   {}, zeros and a total alone never replace counts. What is decided here and
--   in the collector (extract/usage.rs, extract/messages.rs) is one reading,
--   which tests/fixtures/usage.json holds both to.

local json_scan = require "llm_gateway.json_scan"

local byte = string.byte
local find = string.find
local floor = math.floor
local match = string.match
local next = next
local pairs = pairs
local sub = string.sub
local tonumber = tonumber
local type = type

-- A count is an integer of PostgreSQL.
local MAX_COUNT = 2147483647

-- Names of counts; a table holds those of a nested object.
local COUNTS = {
  prompt_tokens = true,
  completion_tokens = true,
  total_tokens = true,
  prompt_tokens_details = { cached_tokens = true },
  completion_tokens_details = { reasoning_tokens = true },

  input_tokens = true,
  output_tokens = true,
  input_tokens_details = { cached_tokens = true },
  output_tokens_details = { reasoning_tokens = true },

  cache_read_input_tokens = true,
  cache_creation_input_tokens = true,
  reasoning_tokens = true,
  cached_tokens = true,
  prompt_cache_hit_tokens = true,
}

-- What a report of /v1/messages says of the prompt counts as a whole.
local OF_PROMPT = {
  input_tokens = true,
  cache_creation_input_tokens = true,
  cache_read_input_tokens = true,
}

local QUOTE = byte('"')
local OPEN_BRACE = byte("{")

local M = {}


-- @return a whole number, nil when the value is no count
local function read_count(text, from, to)
  local value = sub(text, from, to)
  if byte(value) == QUOTE then
    value = match(value, '^"%s*([^%s"]*)%s*"$')
  end

  local number = value and find(value, "^%d+%.?%d*[eE]?[+-]?%d*$")
                 and tonumber(value)
  if number and number <= MAX_COUNT and number == floor(number) then
    return number
  end

  return nil
end


local function read(text, open, names)
  local counts = {}

  json_scan.members(text, open, function(key, from, to)
    local name = to and names[key]
    if name == true then
      counts[key] = read_count(text, from, to)

    elseif name then
      counts[key] = byte(text, from) == OPEN_BRACE
                    and read(text, from, name) or nil
    end
  end)

  return next(counts) and counts or nil
end


-- @param open position of "{"
-- @return table of counts, nil when there are none
function M.read(text, open)
  return read(text, open, COUNTS)
end


local function total(usage)
  return (usage.prompt_tokens or usage.input_tokens or 0)
         + (usage.completion_tokens or usage.output_tokens or 0)
end


local function says_nothing(count)
  if type(count) ~= "table" then
    return count == nil or count == 0
  end

  for _, inner in pairs(count) do
    if inner ~= 0 then
      return false
    end
  end

  return true
end


-- Fills in what a report leaves out, or says is 0.
local function complete(usage, other)
  for name, count in pairs(other) do
    if usage[name] == nil or says_nothing(usage[name])
      and not says_nothing(count)
    then
      usage[name] = count
    end
  end
end


-- Running counts grow, and no report takes back what another one said.
-- @return the report with the larger total, of equal ones the later
function M.larger(before, usage)
  if not before then
    return usage
  end

  complete(usage, before)
  if total(usage) >= total(before) then
    return usage
  end

  complete(before, usage)
  return before
end


-- @return whether a report has counts of the prompt
function M.has_prompt(usage)
  return (usage.prompt_tokens or usage.input_tokens or 0) > 0
end


local function prompt(usage)
  local sum = 0
  for name in pairs(OF_PROMPT) do
    sum = sum + (usage[name] or 0)
  end

  return sum
end


-- Events of /v1/messages complete each other: some servers know the prompt at
-- the start, others at the end.
function M.add_to_message(before, usage)
  local is_prompt_kept = before.input_tokens
                         and prompt(usage) < prompt(before)
  for name, count in pairs(usage) do
    local known = before[name]
    local is_kept = OF_PROMPT[name] and is_prompt_kept
                    or not OF_PROMPT[name] and type(known) == "number"
                       and known > count
    if known == nil or not is_kept then
      before[name] = count
    end
  end
end


return M
