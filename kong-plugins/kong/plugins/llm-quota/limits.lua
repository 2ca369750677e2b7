-- The limits of a site, its windows of time and its prices, as the collector
-- told them; which of them hold for a call.
--
-- What comes over the network is made clean first: a limit, a time or a price
-- that is none is left out, and of each there are no more than stands below.
-- Amounts are whole numbers up to 2^53, which a float holds exactly; cost
-- is counted in millionths of the currency.
--
-- Pure: tables only.

local like = require "kong.plugins.llm-quota.like"

local floor = math.floor
local format = string.format
local gmatch = string.gmatch
local huge = math.huge
local ipairs = ipairs
local match = string.match
local max = math.max
local min = math.min
local pairs = pairs
local sort = table.sort
local sub = string.sub
local tonumber = tonumber
local type = type

-- The collector sends no more than these.
local MAX_LIMITS = 1000
local MAX_PRICES = 1000
local MAX_STARTS = 200

local MAX_TEXT_BYTES = 1000

-- As JSON has numbers (lua-cjson writes 14 digits).
local MAX_ID = 1e14

-- The names under which usage is counted have so many characters.
local MAX_NAME_CHARACTERS = 200

-- What the collector counts calls for that name no model.
local NO_MODEL = "unknown"

-- Callers and models whose limits are remembered. Whoever makes up models gets
-- no more than this.
local MAX_KNOWN = 10000

local MOST = 2 ^ 53
local MILLION = 1000000

local SUBJECTS = { each_user = true, user = true, team = true,
                   everybody = true }
local UNITS = { tokens = true, calls = true, cost = true }
local MODES = { hard = true, soft = true, wait = true, shadow = true }

-- How long a window is that nobody told the end of.
local SECONDS = { hour = 3600, day = 86400, week = 7 * 86400,
                  month = 30 * 86400 }

local M = { MOST = MOST, SECONDS = SECONDS }


-- --- making clean -----------------------------------------------------------

-- @return a finite number that is not negative, else nil
local function number(value)
  return type(value) == "number" and value >= 0 and value <= MOST and value
         or nil
end


-- @return a whole number that is not negative, else nil
local function whole(value)
  local found = number(value)

  return found and floor(found) == found and found or nil
end

M.whole = whole


local function text(value)
  return type(value) == "string" and value ~= "" and #value <= MAX_TEXT_BYTES
         and value or nil
end


-- @param value of a currency
-- @return millionths of it, nil where that is no amount
function M.millionths(value)
  return type(value) == "number" and value >= -MOST / MILLION
         and value <= MOST / MILLION and floor(value * MILLION + 0.5) or nil
end


-- @return value in the unit of the counters, at most what they can hold: that
-- much is never used; nil where it is none
local function amount_of(unit, value)
  if type(value) ~= "number" or not (value >= 0 and value < huge) then
    return nil
  end

  return min(floor(unit == "cost" and value * MILLION + 0.5 or value), MOST)
end


-- JSON's null is something else than nil.
local function is_missing(value)
  return value == nil or type(value) == "userdata"
end


local function clean_limit(told)
  if type(told) ~= "table" then
    return nil
  end

  local limit = {
    id = whole(told.id) and told.id < MAX_ID and told.id or nil,
    subject = SUBJECTS[told.subject] and told.subject,
    name = text(told.name),
    models = text(told.models) or is_missing(told.models) and "%" or nil,
    unit = UNITS[told.unit] and told.unit,
    currency = text(told.currency),
    per = SECONDS[told.per] and told.per,
    most = amount_of(told.unit, told.amount),
    mode = MODES[told.mode] and told.mode,
  }
  local is_named = limit.subject == "user" or limit.subject == "team"
  if not (limit.id and limit.subject and limit.models and limit.unit
          and limit.per and limit.most and limit.mode)
    or is_named and not limit.name
    or limit.unit == "cost" and not limit.currency
  then
    return nil
  end

  -- A text, since JSON has fewer digits.
  limit.most = format("%.0f", limit.most)

  return limit
end


local function clean_price(told)
  if type(told) ~= "table" then
    return nil
  end

  local price = {
    models = text(told.models),
    prompt = number(told.prompt),
    cached = number(told.cached),
    completion = number(told.completion),
    currency = text(told.currency),
  }

  return price.models and price.prompt and price.cached and price.completion
         and price.currency and price or nil
end


local function clean_list(told, most, clean)
  local items = {}
  if type(told) ~= "table" then
    return items, 0
  end

  local left_out = max(#told - most, 0)
  for i = 1, min(#told, most) do
    local item = clean(told[i])
    if item then
      items[#items + 1] = item
    else
      left_out = left_out + 1
    end
  end

  return items, left_out
end


-- @param told limits, windows and prices, from anybody
-- @return the same as far as it is as it should be; how many limits and prices
-- are not
function M.clean(told)
  local limits, bad_limits = clean_list(told.limits, MAX_LIMITS, clean_limit)
  local prices, bad_prices = clean_list(told.prices, MAX_PRICES, clean_price)

  local windows = {}
  for unit in pairs(SECONDS) do
    local starts = clean_list(type(told.windows) == "table"
                              and told.windows[unit], MAX_STARTS, whole)
    sort(starts)
    windows[unit] = starts
  end

  return { limits = limits, windows = windows, prices = prices },
         bad_limits + bad_prices
end


-- --- looking up -------------------------------------------------------------

-- @param conf as M.clean gave it
function M.index(conf)
  local index = {
    limits = conf.limits,
    windows = conf.windows,
    prices = conf.prices,
    by_id = {},
    everybody = {},
    each_user = {},
    user = {},
    team = {},
    -- what was found before
    windows_now = {},
    known = {},
    known_count = 0,
  }

  for _, limit in ipairs(conf.limits) do
    index.by_id[limit.id] = limit
    limit.most = tonumber(limit.most)
    limit.prefix = format("%.0f:", limit.id)
    local list = index[limit.subject]
    if limit.subject == "user" or limit.subject == "team" then
      list[limit.name] = list[limit.name] or {}
      list = list[limit.name]
    end
    list[#list + 1] = limit
  end

  return index
end


-- @return name as usage is counted under it
function M.counted_name(name)
  if #name <= MAX_NAME_CHARACTERS then
    return name
  end

  local count = 0
  for to in gmatch(name, "[^\128-\191][\128-\191]*()") do
    count = count + 1
    if count == MAX_NAME_CHARACTERS then
      return sub(name, 1, to - 1)
    end
  end

  return name
end


-- @param consumer as Kong has it; nil for nobody
-- @return the user and the team under which the collector counts the call
function M.caller(consumer)
  if not consumer then
    return "anonymous", nil
  end

  local user = type(consumer.username) == "string" and consumer.username
               or type(consumer.custom_id) == "string" and consumer.custom_id
               or "anonymous"
  local tags = type(consumer.tags) == "table" and consumer.tags or {}
  for _, tag in ipairs(tags) do
    local team = type(tag) == "string" and match(tag, "^team:(.*)$")
    if team then
      return M.counted_name(user), team ~= "" and M.counted_name(team) or nil
    end
  end

  return M.counted_name(user), nil
end


-- @return whether there is any limit for this caller, whatever the model
function M.concerns(index, user, team)
  return index.everybody[1] ~= nil or index.each_user[1] ~= nil
         or index.user[user] ~= nil or team ~= nil and index.team[team] ~= nil
end


local function add_matching(found, limits, subject, model)
  for _, limit in ipairs(limits or {}) do
    if like.matches(limit.models, model) then
      found[#found + 1] = { limit = limit, subject = subject,
                            suffix = ":" .. subject }
    end
  end
end


-- @param model nil where none is known
-- @return list of { limit, subject, suffix } that hold for a call
function M.applying(index, user, team, model)
  model = model or NO_MODEL
  local key = user .. "\0" .. (team or "") .. "\0" .. model
  local found = index.known[key]
  if found then
    return found
  end

  found = {}
  add_matching(found, index.each_user, user, model)
  add_matching(found, index.user[user], user, model)
  if team then
    add_matching(found, index.team[team], team, model)
  end
  add_matching(found, index.everybody, "", model)

  if index.known_count >= MAX_KNOWN then
    index.known, index.known_count = {}, 0
  end
  index.known[key] = found
  index.known_count = index.known_count + 1

  return found
end


local function find_window(starts, seconds, at)
  local count = #starts
  if count == 0 then
    local start = floor(at / seconds) * seconds
    return start, start + seconds
  end

  local last = starts[count]
  if at >= last then
    -- The collector has been away for as long as it told ahead.
    local start = last + floor((at - last) / seconds) * seconds
    return start, start + seconds
  end

  local i = 1
  while i + 1 < count and starts[i + 1] <= at do
    i = i + 1
  end

  return starts[i], starts[i + 1]
end


-- @param per "hour", "day", "week" or "month"
-- @return the first second of the window in which `at` is, and the first one
-- behind it
function M.window(index, per, at)
  local now = index.windows_now[per]
  if now and at >= now.start and at < now.stop then
    return now.start, now.stop
  end

  local start, stop = find_window(index.windows[per], SECONDS[per], at)
  index.windows_now[per] = { start = start, stop = stop }

  return start, stop
end


-- --- what a call takes ------------------------------------------------------

local NO_PRICE = { prompt = 0, cached = 0, completion = 0 }

-- @return the price of a model, as the collector finds it: that of the longest
-- pattern, of patterns as long the first by their bytes
local function price_of(index, model)
  local prices = index.price_of or {}
  index.price_of = prices
  local price = prices[model]
  if price then
    return price
  end

  for _, candidate in ipairs(index.prices) do
    if like.matches(candidate.models, model)
      and (not price or #candidate.models > #price.models
           or #candidate.models == #price.models
              and candidate.models < price.models)
    then
      price = candidate
    end
  end
  price = price or NO_PRICE

  if (index.price_count or 0) >= MAX_KNOWN then
    prices = {}
    index.price_of, index.price_count = prices, 0
  end
  prices[model] = price
  index.price_count = (index.price_count or 0) + 1

  return price
end


-- @param taken { calls, prompt, completion, uncached and cached (nil: none of
-- the prompt was in the cache) }
-- @return how much of a limit that is
function M.taken_of(index, limit, model, taken)
  if limit.unit == "calls" then
    return taken.calls
  elseif limit.unit == "tokens" then
    return min(taken.prompt + taken.completion, MOST)
  end

  local price = price_of(index, model or NO_MODEL)
  if price.currency ~= limit.currency then
    return 0
  end

  -- A price is for a million tokens, and the counter counts millionths.
  local cost = (taken.uncached or taken.prompt) * price.prompt
               + (taken.cached or 0) * price.cached
               + taken.completion * price.completion

  return min(floor(cost + 0.5), MOST)
end


return M
