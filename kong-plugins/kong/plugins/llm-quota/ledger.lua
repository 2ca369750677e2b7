-- How much of each limit is used, as far as this node knows, in the shared dict
-- `llm_quota`: what a call reserves, and what becomes of it.
--
--     t:COUNTER = committed at the collector
--                 + charges of ended calls that are not in that count yet
--                 + what calls under way have reserved
--
-- A COUNTER is LIMIT:WINDOW:SUBJECT, with the window's first second. So that
-- each part can be taken back when its time has come:
--   b:COUNTER        what of it is committed (counts.lua)
--   r:SLOT:COUNTER   what calls under way in one worker have reserved
--   p:SLOT:NUMBER    the charges of one ended call: amounts and counters
--   w:SLOT           the worker's name; lo:SLOT and hi:SLOT bound its numbers
--
-- Invariants
--   To see whether there is room is to take it: one addition, whose result is
--   looked at. Of a thousand calls at once none gets what another one has.
--   A call reserves with all of its limits or with none.
--   Nothing is ever evicted: what finds no room is counted (`lost`), and the
--   call goes on. Its charge is then missing here until its row is counted.
--   No function yields.
--
-- Several workers are several of these on one dict. A worker that is killed
-- between two additions leaves one call too much in a counter, until its window
-- is over.

local limits = require "kong.plugins.llm-quota.limits"

local new_table = require "table.new"

local concat = table.concat
local format = string.format
local ipairs = ipairs
local max = math.max
local setmetatable = setmetatable

-- Workers that run, and ended ones of which calls are not counted yet.
local MAX_SLOTS = 256

-- A counter is kept for so long behind its window, for calls that began in it.
local GRACE_SECONDS = 7200

local MOST = limits.MOST

local M = { MAX_SLOTS = MAX_SLOTS }

local Ledger = {}
Ledger.__index = Ledger

local Admission = {}
Admission.__index = Admission


-- @param dict an ngx.shared dict
-- @param options { worker: returns this worker's name, now: returns seconds,
-- decode: makes a table of JSON, nil where it is none }
function M.new(dict, options)
  return setmetatable({
    dict = dict,
    worker = options.worker,
    now = options.now,
    decode = options.decode,
    generation = nil,
    index = nil,
    slot = nil,
  }, Ledger)
end


-- --- the dict ---------------------------------------------------------------

-- @return how long a counter is kept; 0 and less where it is over
function Ledger:ttl(stop)
  return stop - self.now() + GRACE_SECONDS
end


-- Something found no room.
function Ledger:lose()
  local dict = self.dict
  if not dict:incr("lost", 1) then
    dict:safe_add("lost", 1)
  end
end


-- @return the counter's new value; nil where there is no room for it
function Ledger:add(key, amount, ttl)
  local dict = self.dict
  local value = dict:incr(key, amount)
  if value then
    return value
  end

  local ok, err = dict:safe_add(key, 0, ttl)
  if not ok and err ~= "exists" then
    return nil
  end

  return dict:incr(key, amount)
end


-- @return the limits as they are now, see limits.index; nil where no collector
-- has told them
function Ledger:limits()
  local dict = self.dict
  local generation = dict:get("generation")
  if generation ~= self.generation then
    local conf = generation and self.decode(dict:get("conf:" .. generation)
                                            or "")
    self.index = conf and limits.index(conf) or nil
    self.generation = self.index and generation
  end

  return self.index
end


-- @return a place for what this worker notes; nil where all are taken
function Ledger:own_slot()
  local dict, name = self.dict, self.worker()
  local slot = self.slot
  if slot and dict:get("w:" .. slot) == name then
    return slot
  end

  for i = 1, MAX_SLOTS do
    if dict:safe_add("w:" .. i, name) then
      self.slot = i
      return i
    end
  end

  return nil
end


-- --- a call that begins -----------------------------------------------------

local function take_back(self, items)
  for _, item in ipairs(items) do
    if item.reserved then
      self:give_back(item)
    end
  end
end


-- Takes a reservation out of its counters, and puts the charge there.
-- @param charge nil: none
function Ledger:give_back(item, charge)
  local dict = self.dict
  local reserved = item.reserved or 0
  item.reserved = nil

  if reserved > 0 then
    local left = dict:incr(item.reserved_key, -reserved)
    if not left then
      -- This worker was taken for a dead one: it is taken back already.
      reserved = 0
    elseif left <= 0 then
      dict:delete(item.reserved_key)
    end
  end

  local change = (charge or 0) - reserved
  if change == 0 then
    return
  end
  if not dict:incr(item.key, change) and change > 0 then
    local ttl = self:ttl(item.stop)
    if ttl > 0 and not self:add(item.key, change, ttl) then
      self:lose()
    end
  end
end


-- @return what is used with this call in it; nil where there is no room for
-- the reservation
local function reserve_one(self, item, amount, slot)
  local ttl = self:ttl(item.stop)
  local key = "r:" .. slot .. item.colon_key
  if ttl <= 0 or not self:add(key, amount, ttl) then
    return nil
  end

  local used = self:add(item.key, amount, ttl)
  if not used then
    self.dict:incr(key, -amount)
    return nil
  end
  item.reserved, item.reserved_key = amount, key

  return used
end


-- @return the counters of the limits that hold for a call
local function items_of(index, applying, at)
  local items = new_table(#applying, 0)
  for i = 1, #applying do
    local found = applying[i]
    local limit = found.limit
    local start, stop = limits.window(index, limit.per, at)
    local colon_key = ":" .. limit.prefix .. start .. found.suffix
    items[i] = { limit = limit, subject = found.subject, start = start,
                 stop = stop, colon_key = colon_key, key = "t" .. colon_key,
                 reserved = nil, reserved_key = nil, used = 0 }
  end

  return items
end


-- Looks at one limit, and takes what the call may take of it.
-- @return whether it is refused
local function look_at(self, item, amount, slot)
  local limit = item.limit
  item.asked = amount
  local takes_any = amount > 0 or limit.unit == "calls"

  if limit.mode == "hard" and takes_any and slot then
    local used = reserve_one(self, item, amount, slot)
    if used then
      item.used = used
      return used > limit.most
    end
    self:lose()
  end

  item.used = max(self.dict:get(item.key) or 0, 0)

  return limit.mode ~= "shadow" and takes_any and item.used >= limit.most
end


-- Lets a call in, or not.
-- @param call { user, team, model (nil: not known), at: the second in which it
-- began, calls, prompt, completion: what it may take }
-- @return an admission, which has to be settled or released; or nil and the
-- refusal: { limit, subject, used, asked, start, stop }; in any case what is
-- left of each limit: list of { limit, used, stop }
function Ledger:reserve(call)
  local index = self:limits()
  local applying = limits.applying(index, call.user, call.team, call.model)
  local items = items_of(index, applying, call.at)
  local slot = items[1] and self:own_slot()

  local refused
  for i = 1, #items do
    local item = items[i]
    local amount = limits.taken_of(index, item.limit, call.model, call)
    -- Of several that are over the one that is over for longest is told.
    if look_at(self, item, amount, slot)
      and (not refused or item.stop > refused.stop)
    then
      refused = item
    end
  end

  if refused then
    local used = refused.used - (refused.reserved or 0)
    take_back(self, items)
    if not self.dict:incr("refused", 1) then
      self.dict:safe_add("refused", 1)
    end

    return nil, { limit = refused.limit, subject = refused.subject,
                  used = used, asked = refused.asked, start = refused.start,
                  stop = refused.stop }, items
  end

  return setmetatable({ ledger = self, index = index, call = call,
                        items = items, is_done = false }, Admission),
         nil, items
end


-- --- a call that ends -------------------------------------------------------

-- Nothing will be counted of the call: it leaves no trace.
function Admission:release()
  if self.is_done then
    return
  end

  self.is_done = true
  take_back(self.ledger, self.items)
end


-- The counters of the limits that hold for the model that answered, with the
-- reservations that are there.
local function items_for(self, model)
  local call, index = self.call, self.index
  if not model or model == call.model then
    return self.items
  end

  local applying = limits.applying(index, call.user, call.team, model)
  local items = items_of(index, applying, call.at)
  local by_key = {}
  for _, item in ipairs(items) do
    by_key[item.key] = item
  end
  for _, old in ipairs(self.items) do
    local item = by_key[old.key]
    if item then
      item.reserved, item.reserved_key = old.reserved, old.reserved_key
    elseif old.reserved then
      self.ledger:give_back(old)
    end
  end

  return items
end


-- Remembers the charges of a call until the collector has counted it.
-- @return whether there was room for that
local function remember(self, number, parts)
  local dict = self.dict
  local slot = self:own_slot()
  if not slot or number > MOST
    or not dict:safe_set("p:" .. slot .. ":" .. number, concat(parts))
  then
    self:lose()
    return false
  end

  dict:safe_add("lo:" .. slot, number)
  dict:safe_set("hi:" .. slot, number)
  if not dict:incr("pending", 1) then
    dict:safe_add("pending", 1)
  end

  return true
end


-- The call has ended, and its entry has a number: what was reserved becomes
-- what was taken.
-- @param number of the entry, in this worker
-- @param taken as limits.taken_of wants it
-- @param model that answered; nil: not known
function Admission:settle(number, taken, model)
  if self.is_done then
    return
  end

  self.is_done = true
  local ledger = self.ledger
  local items = items_for(self, model)
  local charges, parts = {}, {}
  for i, item in ipairs(items) do
    local charge = limits.taken_of(self.index, item.limit,
                                   model or self.call.model, taken)
    charges[i] = charge
    if charge > 0 then
      parts[#parts + 1] = format("%.0f %d ", charge,
                                 #item.colon_key)
      parts[#parts + 1] = item.colon_key
    end
  end

  local is_kept = parts[1] == nil or remember(ledger, number, parts)
  for i, item in ipairs(items) do
    ledger:give_back(item, is_kept and charges[i] or 0)
  end
end


return M
