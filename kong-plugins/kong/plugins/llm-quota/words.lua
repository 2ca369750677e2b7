-- What callers are told of their limits: the error when one is over, and the
-- headers of every answer.
--
-- Both SDKs try again by themselves after 429. Where they would not wait long
-- enough for that to help they are told not to.

local concat = table.concat
local floor = math.floor
local format = string.format
local gsub = string.gsub
local ipairs = ipairs
local max = math.max
local os_date = os.date
local sub = string.sub

local MILLION = 1000000

-- The longest that every SDK waits because of Retry-After; later ones of OpenAI
-- wait twice as long.
local SDK_WAIT_SECONDS = 60

local HEADERS = {
  openai = { limit = "x-ratelimit-limit-%s",
             remaining = "x-ratelimit-remaining-%s",
             reset = "x-ratelimit-reset-%s" },
  anthropic = { limit = "anthropic-ratelimit-%s-limit",
                remaining = "anthropic-ratelimit-%s-remaining",
                reset = "anthropic-ratelimit-%s-reset" },
}
-- What the SDKs call the units that they know.
local UNITS = { tokens = "tokens", calls = "requests" }

local headers_of = {}
for kind, names in pairs(HEADERS) do
  headers_of[kind] = {}
  for unit, word in pairs(UNITS) do
    headers_of[kind][unit] = {
      limit = format(names.limit, word),
      remaining = format(names.remaining, word),
      reset = format(names.reset, word),
    }
  end
end

local M = {}


-- @param seconds whole ones
-- @return as OpenAI writes them: 6h12m0s, 33s
function M.duration(seconds)
  seconds = max(seconds, 0)
  local days = floor(seconds / 86400)
  local hours, minutes = floor(seconds / 3600), floor(seconds / 60) % 60

  if days > 0 then
    return format("%dd%dh%dm%ds", days, hours % 24, minutes, seconds % 60)
  elseif hours > 0 then
    return format("%dh%dm%ds", hours, minutes, seconds % 60)
  elseif minutes > 0 then
    return format("%dm%ds", minutes, seconds % 60)
  end

  return format("%ds", seconds)
end


-- @return the time as RFC 3339 has it
function M.time(seconds)
  return os_date("!%Y-%m-%dT%H:%M:%SZ", seconds)
end


local function with_commas(number)
  local text = format("%.0f", number)
  local head = (#text - 1) % 3 + 1

  return sub(text, 1, head) .. gsub(sub(text, head + 1), "%d%d%d", ",%0")
end


-- @param amount in the unit of the counters
local function amount_of(limit, amount)
  amount = max(amount, 0)
  if limit.unit ~= "cost" then
    return with_commas(amount)
  end

  return with_commas(floor(amount / MILLION))
         .. format(".%02d ", floor(amount % MILLION / 10000)) .. limit.currency
end


-- --- the error --------------------------------------------------------------

local SUBJECTS = {
  each_user = function()
    return "each user"
  end,
  user = function(limit)
    return "user " .. limit.name
  end,
  team = function(limit)
    return "team " .. limit.name
  end,
  everybody = function()
    return "all users together"
  end,
}


-- Whether the amount is one of what is counted.
local function is_one(limit, amount)
  return limit.unit ~= "cost" and amount == 1
end


local function what_of(limit)
  local unit = limit.unit == "cost" and "" or " " .. limit.unit
  if is_one(limit, limit.most) then
    unit = sub(unit, 1, -2)
  end
  local models = limit.models == "%" and ""
                 or " of models " .. limit.models

  return amount_of(limit, limit.most) .. unit .. models
end


-- @param refusal as the ledger gives it
local function message_of(refusal, now, contact)
  local limit = refusal.limit
  local is_hard = limit.mode == "hard"
  local are = is_one(limit, refusal.used) and " is" or " are"
  local parts = {
    format("Quota exceeded: %s may use %s per %s (limit %.0f); ",
           SUBJECTS[limit.subject](limit), what_of(limit), limit.per,
           limit.id),
    amount_of(limit, refusal.used),
    are, is_hard and " used or reserved by calls under way" or " used",
  }
  if is_hard and limit.unit ~= "calls" then
    parts[#parts + 1] = format(", and this call may take %s",
                               amount_of(limit, refusal.asked))
  end
  parts[#parts + 1] = format(". It resets in %s, at %s.",
                             M.duration(refusal.stop - now),
                             M.time(refusal.stop))
  if contact then
    parts[#parts + 1] = " To get more, ask " .. contact .. "."
  end

  return concat(parts)
end


-- @param refusal as the ledger gives it
-- @param now in whole seconds
-- @param contact who can help; nil: nobody is named
-- @return the error, as answers.error wants it, with headers
function M.error(refusal, now, contact)
  local limit = refusal.limit
  local wait = max(refusal.stop - now, 1)
  local is_hour = limit.per == "hour"
  local headers = {}
  if is_hour then
    headers["Retry-After"] = format("%d", wait)
  end
  if not is_hour or wait > SDK_WAIT_SECONDS then
    headers["x-should-retry"] = "false"
  end

  return {
    status = 429,
    message = message_of(refusal, now, contact),
    type = is_hour and (UNITS[limit.unit] or "tokens")
           or "insufficient_quota",
    code = is_hour and "rate_limit_exceeded" or "insufficient_quota",
    anthropic_type = "rate_limit_error",
    headers = headers,
  }
end


-- No limit is known, or none of what is used.
function M.unknown()
  return {
    status = 503,
    message = "It is not known at the moment how much of the quota is left; "
              .. "try again in a few seconds.",
    type = "server_error",
    anthropic_type = "overloaded_error",
    headers = { ["Retry-After"] = "2" },
  }
end


-- --- the headers ------------------------------------------------------------

-- @param places list of { limit, stop }, one for each limit of the call
-- @param used list of what is used of each
-- @param is_anthropic whether the caller has Anthropic's SDK
-- @param now in whole seconds
-- @param set called with name and value
function M.set_headers(places, used, is_anthropic, now, set)
  local tightest = {}
  for i, place in ipairs(places) do
    local limit = place.limit
    local left = max(limit.most - used[i], 0)
    local share = limit.most > 0 and left / limit.most or 0
    local other = tightest[limit.unit]
    if UNITS[limit.unit] and (not other or share < other.share) then
      tightest[limit.unit] = { place = place, left = left, share = share }
    end
  end

  local kinds = headers_of[is_anthropic and "anthropic" or "openai"]
  for unit, found in pairs(tightest) do
    local names, stop = kinds[unit], found.place.stop
    set(names.limit, format("%.0f", found.place.limit.most))
    set(names.remaining, format("%.0f", found.left))
    set(names.reset, is_anthropic and M.time(stop) or M.duration(stop - now))
  end
end


return M
