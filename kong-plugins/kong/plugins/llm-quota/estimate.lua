-- What a call may take, from its request, and what it took, from its entry.
--
-- The prompt has the bytes of the request by four tokens, without pictures,
-- sound and vectors; the answer as many as are asked for at most, for each of
-- its choices and prompts. What it took is what the server reported, and where
-- it reported nothing what llm-audit estimates (`llm.estimated`): the numbers
-- that the row of the call will have.
--
-- Pure: tables and numbers only.

local apis = require "llm_gateway.api"
local json_scan = require "llm_gateway.json_scan"

local byte = string.byte
local find = string.find
local gsub = string.gsub
local ipairs = ipairs
local match = string.match
local max = math.max
local min = math.min
local sub = string.sub
local tonumber = tonumber
local type = type

local GENERATES = apis.GENERATES
local TAKES_TOKENS = apis.TAKES_TOKENS

local QUOTE = byte('"')

-- A count is an integer of PostgreSQL; nobody means more.
local MAX_COUNT = 2147483647

-- Servers know one of them, or go by the first one that is there.
local MOST_TOKENS = { "max_completion_tokens", "max_tokens",
                      "max_output_tokens" }

local M = {}


-- vLLM takes "20", "+20", "1_000", "20.0" with white space of any kind around
-- (pydantic's integers). A text that it refuses may count, too: no model works
-- for it.
-- @param raw what stands between the quotes
-- @return the digits of the number, nil where there is none
local function digits_of(raw)
  local text = gsub(json_scan.decode_string(raw) or "", "_", "")

  return match(text, "^[^%d%-]*(%d+)")
end


-- @param member of the request's outermost ones, see llm_gateway.request
-- @return the number that a server reads there, nil where it is none
local function count_of(member)
  local text = member and member.text
  if member and not text then
    -- longer than any number that somebody means
    return MAX_COUNT
  end

  if text == "true" then
    return 1
  end

  local digits
  if text and byte(text) == QUOTE then
    digits = digits_of(sub(text, 2, -2))
  elseif text and find(text, "^%d+%.?%d*[eE]?[+-]?%d*$") then
    digits = text
  end

  local number = digits and tonumber(digits)

  return number and min(number, MAX_COUNT)
end


local function most_tokens(members, default)
  local most
  for _, name in ipairs(MOST_TOKENS) do
    local count = count_of(members[name])
    -- The larger one, if a server should go by another one than this does.
    most = count and max(count, most or 0) or most
  end

  return most or default
end


-- @param api of the call
-- @param found what its request asks for, see llm_gateway.request; nil where
-- it was not read
-- @param size bytes of its body
-- @param prompts how many prompts a request of `completions` has
-- @param default tokens of an answer for which none are asked for
-- @return tokens of the prompt, tokens of the answer
function M.of_request(api, found, size, prompts, default)
  if not TAKES_TOKENS[api] then
    return 0, 0
  end

  local members = found and found.members or {}
  local prompt = apis.tokens_of(found and found.text_bytes or size)
  if not GENERATES[api] then
    return prompt, 0
  end

  local choices = max(count_of(members.n) or 1, 1)

  return prompt, most_tokens(members, default) * choices * prompts
end


local function number_of(counts, name)
  local value = type(counts) == "table" and counts[name]

  return type(value) == "number" and value or nil
end


-- @return the tokens of the prompt that came from a cache, by whatever name
local function cached_of(usage)
  return number_of(usage.prompt_tokens_details, "cached_tokens")
         or number_of(usage.input_tokens_details, "cached_tokens")
         or number_of(usage, "cache_read_input_tokens")
         or number_of(usage, "cached_tokens")
         or number_of(usage, "prompt_cache_hit_tokens") or 0
end


local function prompt_of(usage)
  local input = number_of(usage, "input_tokens")

  return number_of(usage, "prompt_tokens")
         or input and input + (number_of(usage, "cache_creation_input_tokens")
                               or 0)
         or 0
end


-- @param llm what the entry of the call has under this name
-- @param was_forwarded whether a model server got the call
-- @param hides_usage whether the server reports tokens that could not be read
-- @param asked { prompt, completion } that the call might take
-- @return what it took, as limits.taken_of wants it
function M.of_entry(llm, was_forwarded, hides_usage, asked)
  local taken = { calls = was_forwarded and 1 or 0, prompt = 0,
                  completion = 0 }
  -- Another call counts the tokens of an answer that is repeated.
  if not was_forwarded or llm["repeat"] then
    return taken
  end

  local usage, estimated = llm.usage, llm.estimated
  if usage then
    taken.prompt = prompt_of(usage)
    taken.completion = number_of(usage, "completion_tokens")
                       or number_of(usage, "output_tokens") or 0
    taken.cached = cached_of(usage)
    -- Anthropic's count of the prompt is without what came from the cache.
    taken.uncached = llm.api == "messages" and taken.prompt
                     or max(taken.prompt - taken.cached, 0)

  elseif estimated then
    taken.prompt = estimated.prompt_tokens or 0
    taken.completion = estimated.completion_tokens or 0

  elseif hides_usage and TAKES_TOKENS[llm.api] then
    taken.prompt, taken.completion = asked.prompt, asked.completion
  end

  return taken
end


return M
