-- Which share of the places a caller has, and how soon his calls are due inside
-- vLLM.
--
-- Pure: tables and numbers only.

local exp = math.exp
local floor = math.floor
local ipairs = ipairs
local match = string.match
local max = math.max
local min = math.min
local tonumber = tonumber
local type = type

local MOST_WEIGHT = 1000

-- Tokens of the last minutes count: e-fold.
local TOKEN_SECONDS = 300

local MOST_TOKENS = 999999
local CLASS_STEP = 1000000
local CLASSES = { interactive = 0, batch = 1, behind = 2 }

local M = {}


local function tagged(entity, pattern)
  local tags = entity and entity.tags
  for _, tag in ipairs(type(tags) == "table" and tags or {}) do
    local value = type(tag) == "string" and match(tag, pattern)
    if value then
      return value
    end
  end
end


-- @param consumer as Kong has it
-- @param user, team their names, see llm-quota's limits.caller
-- @param weights of the configuration
function M.weight(consumer, user, team, weights)
  local own = tonumber(tagged(consumer, "^weight:(%d+)$") or nil)
  if own and own >= 1 then
    return min(own, MOST_WEIGHT)
  end

  return weights[user] or team and weights["team:" .. team] or 1
end


-- @param credential the key, as Kong has it
-- @return interactive or batch
function M.class(credential)
  return tagged(credential, "^class:(.*)$") == "batch" and "batch"
         or "interactive"
end


-- @param tokens that counted at the time of `since`
-- @return how many of them count now
function M.faded(tokens, since, now)
  return tokens * exp(-max(now - since, 0) / TOKEN_SECONDS)
end


-- @param usage of a call, as it was reported or estimated; nil where none is
-- known
-- @return its tokens
function M.tokens(usage)
  local function count(name)
    local value = usage and usage[name]
    return type(value) == "number" and value or 0
  end

  return count("prompt_tokens") + count("completion_tokens")
         + count("input_tokens") + count("output_tokens")
end


-- @return for X-Vllm-Priority: vLLM serves the smaller number first
function M.priority(class, tokens, weight)
  return CLASSES[class] * CLASS_STEP
         + min(floor(tokens / weight), MOST_TOKENS)
end


return M
