-- What the ledger of a node and the collector tell each other, with POST /sync:
-- which workers have ended calls that wait to be counted, and what is counted.
--
-- An answer puts committed amounts into the counters and takes the charges of
-- the calls that are in them out, in one step: nothing here yields, and one
-- worker of the node does it. A delta is applied to the version it was made
-- for and to no other. Whatever an answer says, the work with it is bounded.

local limits = require "kong.plugins.llm-quota.limits"
local ledgers = require "kong.plugins.llm-quota.ledger"

local floor = math.floor
local ipairs = ipairs
local match = string.match
local max = math.max
local min = math.min
local sort = table.sort
local sub = string.sub
local tonumber = tonumber
local type = type

-- A node's 5,000 users with some limits each and two windows are a tenth.
local MAX_USED = 200000

-- Ranges of numbers of one worker, and all numbers that are looked at one by
-- one; for more it is less work to go through the keys that there are.
local MAX_RANGES = 20000
local MAX_NUMBERS = 50000

-- A snapshot of PostgreSQL names the transactions that were under way.
local MAX_VERSION_BYTES = 65536

local MAX_SUBJECT_BYTES = 1000

local M = {}


-- --- asking -----------------------------------------------------------------

-- Takes amounts that are noted under a key out of their counters.
local function take_out(dict, key)
  local noted = dict:get(key)
  if type(noted) ~= "string" then
    return
  end

  dict:delete(key)
  local from = 1
  while from <= #noted do
    local amount, length, at = match(noted, "^(%d+) (%d+) ()", from)
    if not amount then
      return
    end
    from = at + tonumber(length)
    dict:incr("t" .. sub(noted, at, from - 1), -tonumber(amount))
  end
end


-- Takes back what calls of a worker that died have reserved.
local function drop_reservations(dict, slot)
  local prefix = "r:" .. slot .. ":"
  for _, key in ipairs(dict:get_keys(0)) do
    if sub(key, 1, #prefix) == prefix then
      take_out(dict, key)
    end
  end
end


local function forget_slot(dict, slot)
  for _, kind in ipairs({ "lo:", "hi:", "dropped:", "w:" }) do
    dict:delete(kind .. slot)
  end
end


-- @param is_running whether a worker of that name runs
-- @return list of the workers of which calls wait to be counted
local function waiting_workers(dict, is_running)
  local names = {}
  for slot = 1, ledgers.MAX_SLOTS do
    local name = dict:get("w:" .. slot)
    if name then
      local has_ended = not is_running(name)
      if has_ended and not dict:get("dropped:" .. slot) then
        drop_reservations(dict, slot)
        dict:safe_set("dropped:" .. slot, true)
      end

      local low, high = dict:get("lo:" .. slot), dict:get("hi:" .. slot)
      if low and high and low <= high then
        names[#names + 1] = name
      elseif has_ended then
        forget_slot(dict, slot)
      end
    end
  end

  return names
end


-- @return the member `quota` of a request
function M.ask(ledger, is_running)
  local dict = ledger.dict
  local names = waiting_workers(dict, is_running)

  return {
    version = dict:get("version"),
    revision = dict:get("revision"),
    workers = names[1] and names or nil,
  }
end


-- --- what is committed ------------------------------------------------------

-- @return the counter, the end of its window, the amount; nil where it is none
local function read_used(ledger, index, told)
  if type(told) ~= "table" then
    return nil
  end

  local limit = index.by_id[told[1]]
  local subject, start = told[2], limits.whole(told[3])
  if not limit or not start or type(subject) ~= "string"
    or #subject > MAX_SUBJECT_BYTES or type(told[4]) ~= "number"
  then
    return nil
  end

  local amount = told[4]
  if limit.unit == "cost" then
    amount = limits.millionths(amount)
  elseif amount >= -limits.MOST and amount <= limits.MOST then
    amount = floor(amount + 0.5)
  else
    amount = nil
  end

  local _, stop = limits.window(index, limit.per, start)
  if not amount or ledger:ttl(stop) <= 0 then
    return nil
  end

  return ":" .. limit.prefix .. start .. ":" .. subject, stop, amount
end


local function add_committed(ledger, counter, stop, amount)
  if not (ledger:add("b" .. counter, amount, stop)
          and ledger:add("t" .. counter, amount, stop))
  then
    ledger:lose()
  end
end


-- @param used list of { limit, subject, window, amount }: all there is, or what
-- is more
local function apply_used(ledger, index, used, is_full)
  local dict = ledger.dict
  local named = {}
  for i = 1, min(#used, MAX_USED) do
    local counter, stop, amount = read_used(ledger, index, used[i])
    if counter then
      local before = dict:get("b" .. counter) or 0
      local change = is_full and max(amount, 0) - before
                     or max(amount, -before)
      named["b" .. counter] = true
      if change ~= 0 then
        add_committed(ledger, counter, stop, change)
      end
    end
  end

  if not is_full then
    return
  end

  -- What is not named is 0.
  for _, key in ipairs(dict:get_keys(0)) do
    if sub(key, 1, 2) == "b:" and not named[key] then
      local before = dict:get(key)
      dict:delete(key)
      if type(before) == "number" then
        dict:incr("t" .. sub(key, 2), -before)
      end
    end
  end
end


-- --- what is in the count ---------------------------------------------------

-- @return ranges in order that do not overlap, within low and high; how many
-- numbers they have
local function clean_ranges(told, low, high)
  local ranges = {}
  for i = 1, min(#told, MAX_RANGES) do
    local range = told[i]
    local from = type(range) == "table" and limits.whole(range[1])
    local to = from and limits.whole(range[2])
    if to and from <= high and to >= low then
      ranges[#ranges + 1] = { max(from, low), min(to, high) }
    end
  end
  sort(ranges, function(one, other)
    return one[1] < other[1]
  end)

  local count, reached = 0, low - 1
  for _, range in ipairs(ranges) do
    range[1] = max(range[1], reached + 1)
    reached = max(reached, range[2])
    count = count + max(range[2] - range[1] + 1, 0)
  end

  return ranges, count
end


local function is_in(ranges, number)
  local first, last = 1, #ranges
  while first <= last do
    local middle = (first + last - (first + last) % 2) / 2
    local range = ranges[middle]
    if number < range[1] then
      last = middle - 1
    elseif number > range[2] then
      first = middle + 1
    else
      return true
    end
  end

  return false
end


-- @return the lowest number that is left, nil where none is
local function drop_by_keys(dict, slot, ranges)
  -- Such as end before they begin were in another one.
  local kept = {}
  for _, range in ipairs(ranges) do
    if range[1] <= range[2] then
      kept[#kept + 1] = range
    end
  end

  local lowest
  for _, key in ipairs(dict:get_keys(0)) do
    local of_slot, number = match(key, "^p:(%d+):(%d+)$")
    number = tonumber(number)
    if of_slot and tonumber(of_slot) == slot then
      if is_in(kept, number) then
        take_out(dict, key)
      else
        lowest = min(number, lowest or number)
      end
    end
  end

  return lowest
end


-- Up to where nothing of a worker waits any more.
local function raise_low(dict, slot, low, high)
  local prefix = "p:" .. slot .. ":"
  local last = min(high, low + MAX_NUMBERS)
  while low <= last and dict:get(prefix .. low) == nil do
    low = low + 1
  end
  dict:safe_set("lo:" .. slot, low)
end


local function apply_counted(dict, counted)
  for slot = 1, ledgers.MAX_SLOTS do
    local name = dict:get("w:" .. slot)
    local told = name and counted[name]
    local low, high = dict:get("lo:" .. slot), dict:get("hi:" .. slot)
    if low and high and low <= high then
      if type(told) == "table" then
        local ranges, count = clean_ranges(told, low, high)
        if count > MAX_NUMBERS then
          low = drop_by_keys(dict, slot, ranges) or high + 1
        else
          local prefix = "p:" .. slot .. ":"
          for _, range in ipairs(ranges) do
            for number = range[1], range[2] do
              take_out(dict, prefix .. number)
            end
          end
        end
      end
      raise_low(dict, slot, low, high)
    end
  end
end


-- --- applying ---------------------------------------------------------------

-- @return whether the limits of a full answer are known now
local function learn_limits(ledger, told, encode)
  local dict = ledger.dict
  local conf, left_out = limits.clean(told)
  local before = dict:get("generation") or 0
  local generation = before + 1

  -- The former ones stay: another worker may be about to read them.
  if not dict:safe_set("conf:" .. generation, encode(conf)) then
    ledger:lose()
    return false
  end
  dict:safe_set("generation", generation)
  dict:delete("conf:" .. before - 1)
  dict:safe_set("left_out", left_out)

  return true
end


local function text(value, most)
  return type(value) == "string" and #value <= most and value or nil
end


-- Applies the collector's answer.
-- @param told the member `quota` of the answer, from anybody
-- @param asked what M.ask gave for the request
-- @param encode makes JSON of a table
-- @return true; or nil and why not
function M.apply(ledger, told, asked, encode)
  local dict = ledger.dict
  local version = type(told) == "table"
                  and text(told.version, MAX_VERSION_BYTES)
  if not version then
    return nil, "the answer tells no version of the count"
  end

  local is_full = told.full == true
  if not is_full and (asked.version == nil
                      or dict:get("version") ~= asked.version)
  then
    return nil, "the answer is for another version of the count"
  end

  -- Whoever takes over from a worker that dies in here asks for all of it.
  dict:delete("version")
  if is_full and not learn_limits(ledger, told, encode) then
    return nil, "the shared dict llm_quota has no room for the limits"
  end

  local index = ledger:limits()
  if not index then
    return nil, "the limits are not known"
  end
  apply_used(ledger, index, type(told.used) == "table" and told.used or {},
             is_full)
  apply_counted(dict, type(told.counted) == "table" and told.counted or {})

  dict:safe_set("revision", text(told.revision, MAX_VERSION_BYTES))
  dict:safe_set("version", version)
  dict:safe_set("told_at", ledger.now())

  return true
end


-- @return for how many seconds no answer was applied; nil: there never was one
function M.age(ledger)
  local told_at = ledger.dict:get("told_at")

  return told_at and max(ledger.now() - told_at, 0)
end


-- @return { pending: calls at most that wait to be counted, refused, lost,
-- left_out }
function M.gauges(ledger)
  local dict = ledger.dict
  local gauges = { pending = 0 }
  for slot = 1, ledgers.MAX_SLOTS do
    local low, high = dict:get("lo:" .. slot), dict:get("hi:" .. slot)
    if low and high then
      gauges.pending = gauges.pending + max(high - low + 1, 0)
    end
  end
  for _, name in ipairs({ "refused", "lost", "left_out" }) do
    gauges[name] = dict:get(name) or 0
  end

  return gauges
end


return M
