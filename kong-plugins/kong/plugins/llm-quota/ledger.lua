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
--   r:SLOT:ID:N      what one call under way has reserved: amounts and counters
--   p:SLOT:NUMBER    what one ended call is charged, likewise
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

local buffer = require "string.buffer"
local limits = require "kong.plugins.llm-quota.limits"
local shared_number = require "llm_gateway.shared_number"

local new_table = require "table.new"

local format = string.format
local match = string.match
local max = math.max
local setmetatable = setmetatable

-- Workers that run, and ended ones of which calls are not counted yet.
local MAX_SLOTS = 256

-- A counter is kept for so long behind its window, for calls that began in it.
local GRACE_SECONDS = 7200

-- A worker that gives no sign for 15 s is taken for dead, and what it had
-- reserved is taken back. One that comes back looks before it goes on.
local UNSEEN_SECONDS = 5

-- Numbers up to here are written with all their digits.
local PLAIN = 1e14

local MOST = limits.MOST

local M = { MAX_SLOTS = MAX_SLOTS }

local Ledger = {}
Ledger.__index = Ledger

local Admission = {}
Admission.__index = Admission

-- In which what a call reserves or is charged is put together.
local out = buffer.new()


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
    slot_seen_at = 0,
    has_low = false,
    -- reservations of this worker so far
    reservations = 0,
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


-- @param stop of the counter's window
-- @return its new value; nil where there is no room for it, or it is over
function Ledger:add(key, amount, stop)
  local dict = self.dict
  local value = dict:incr(key, amount)
  if value then
    return value
  end

  local ttl = self:ttl(stop)

  return ttl > 0 and shared_number.begin(dict, key, amount, ttl) or nil
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


local function take_slot(self)
  local dict, name = self.dict, self.worker()
  for i = 1, MAX_SLOTS do
    if dict:safe_add("w:" .. i, name) then
      -- A slot may be another worker's later, that of one that is thought dead.
      self.reserved_prefix = "r:" .. i .. ":" .. match(name, "[^-]*$") .. ":"
      self.charged_prefix = "p:" .. i .. ":"
      self.has_low = false
      return i
    end
  end

  return nil
end


-- @return a place for what this worker notes; nil where all are taken
function Ledger:own_slot()
  local now = self.now()
  local seen_at = self.slot_seen_at
  if now - seen_at > UNSEEN_SECONDS or now < seen_at then
    local slot = self.slot
    if not slot or self.dict:get("w:" .. slot) ~= self.worker() then
      self.slot = take_slot(self)
    end
  end
  self.slot_seen_at = now

  return self.slot
end


-- --- a call that begins -----------------------------------------------------

-- Notes an amount of a counter in `out`.
local function put(amount, place)
  if amount >= PLAIN then
    amount = format("%.0f", amount)
  end
  out:put(amount, " ", place.tail)
end


-- @return where one limit counts a call that began then; the same table for
-- all calls of the window
local function place_of(index, found, at)
  local limit = found.limit
  local start, stop = limits.window(index, limit.per, at)
  local place = found.place
  if place and place.start == start then
    return place
  end

  local counter = ":" .. limit.prefix .. start .. found.suffix
  place = { limit = limit, subject = found.subject, start = start,
            stop = stop, key = "t" .. counter,
            tail = #counter .. " " .. counter }
  found.place = place

  return place
end


local function places_of(index, call, model)
  local applying = limits.applying(index, call.user, call.team, model)
  local count = #applying
  local places = new_table(count, 0)
  for i = 1, count do
    places[i] = place_of(index, applying[i], call.at)
  end

  return places, count
end


-- Takes back what a call has reserved.
local function take_back(self, key, places, reserved)
  local dict = self.dict
  if key then
    dict:delete(key)
  end
  for i = 1, #places do
    if reserved[i] > 0 then
      dict:incr(places[i].key, -reserved[i])
    end
  end
end


-- Notes what stands in `out` as reserved.
-- @return under which key; nil where there is no room
local function note_reservation(self)
  if not self:own_slot() then
    return nil
  end

  local number = self.reservations + 1
  self.reservations = number
  local key = self.reserved_prefix .. number

  return self.dict:safe_set(key, out:tostring()) and key or nil
end


-- @param amounts of each place that the call may take
-- @return what of it is to be reserved, and the key under which that is noted
local function plan(self, places, amounts, count)
  local reserved = new_table(count, 0)
  local has_any = false
  out:reset()
  for i = 1, count do
    local is_reserved = amounts[i] > 0 and places[i].limit.mode == "hard"
    reserved[i] = is_reserved and amounts[i] or 0
    if is_reserved then
      put(amounts[i], places[i])
      has_any = true
    end
  end

  local key = has_any and note_reservation(self) or nil
  if has_any and not key then
    self:lose()
    for i = 1, count do
      reserved[i] = 0
    end
  end

  return reserved, key
end


-- Looks at one limit, and takes what the call may take of it.
-- @return what is used, with the call; whether the call is refused
local function look_at(self, place, amount, reserved, i)
  local limit = place.limit
  if reserved[i] > 0 then
    local used = self:add(place.key, amount, place.stop)
    if used then
      return used, used > limit.most
    end
    reserved[i] = 0
    self:lose()
  end

  local used = max(self.dict:get(place.key) or 0, 0)
  local takes_any = amount > 0 or limit.unit == "calls"

  return used, takes_any and limit.mode ~= "shadow" and used >= limit.most
end


local function note_refused(dict)
  if not dict:incr("refused", 1) then
    dict:safe_add("refused", 1)
  end
end


-- Lets a call in, or not.
-- @param call { user, team, model (nil: not known), at: the second in which it
-- began, calls, prompt, completion: what it may take; can_wait: whether it is
-- let in over a limit of mode `wait` }
-- @return an admission, which has to be settled or released, and has to wait
-- for all other calls where it says is_over; or nil and the
-- refusal: { limit, subject, used, asked, start, stop }; in any case the places
-- where the call is counted, { limit, start, stop }, and what is used of each
function Ledger:reserve(call)
  local index = self:limits()
  local places, count = places_of(index, call, call.model)
  local amounts, used = new_table(count, 0), new_table(count, 0)
  for i = 1, count do
    amounts[i] = limits.taken_of(index, places[i].limit, call.model, call)
  end

  local reserved, key = plan(self, places, amounts, count)
  local refused, waits
  for i = 1, count do
    local place = places[i]
    local sum, is_over = look_at(self, place, amounts[i], reserved, i)
    used[i] = sum
    if is_over and call.can_wait and place.limit.mode == "wait" then
      waits, is_over = true, false
    end
    -- Of several that are over the one that is over for longest is told.
    if is_over and (not refused or place.stop > places[refused].stop) then
      refused = i
    end
  end

  if not refused then
    return setmetatable({ ledger = self, index = index, call = call,
                          places = places, reserved = reserved, key = key,
                          is_over = waits, is_done = false }, Admission),
           nil, places, used
  end

  for i = 1, count do
    used[i] = used[i] - reserved[i]
  end
  take_back(self, key, places, reserved)
  note_refused(self.dict)
  local place = places[refused]

  return nil, { limit = place.limit, subject = place.subject,
                used = used[refused], asked = amounts[refused],
                start = place.start, stop = place.stop }, places, used
end


-- --- a call that ends -------------------------------------------------------

-- Whether what a call has reserved is still there: not where this worker was
-- taken for a dead one meanwhile.
local function holds(self)
  local ledger = self.ledger
  if ledger.now() - self.call.at <= UNSEEN_SECONDS or not self.key then
    return true
  end

  return ledger.dict:get(self.key) ~= nil
end


-- Nothing will be counted of the call: it leaves no trace.
function Admission:release()
  if self.is_done then
    return
  end

  self.is_done = true
  if holds(self) then
    take_back(self.ledger, self.key, self.places, self.reserved)
  end
end


-- Where the model that answered is counted, and what is reserved there.
local function places_for(self, model)
  local call, places = self.call, self.places
  local reserved = self.reserved
  if model and model ~= call.model then
    local others, count = places_of(self.index, call, model)
    local are_same = count == #places
    for i = 1, count do
      are_same = are_same and others[i].key == places[i].key
    end
    if not are_same then
      take_back(self.ledger, nil, places, reserved)
      places, reserved = others, new_table(count, 0)
      for i = 1, count do
        reserved[i] = 0
      end
    end
  end

  return places, reserved
end


-- Remembers what stands in `out` until the collector has counted the call.
-- @return whether there was room for that
local function remember(self, number)
  local dict = self.dict
  local slot = self:own_slot()
  if not slot or number > MOST
    or not dict:safe_set(self.charged_prefix .. number, out:tostring())
  then
    self:lose()
    return false
  end

  if not self.has_low then
    dict:safe_add("lo:" .. slot, number)
    self.has_low = true
    self.high_key = "hi:" .. slot
  end
  dict:safe_set(self.high_key, number)

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
  local ledger, index = self.ledger, self.index
  local dict = ledger.dict
  local held = holds(self)
  if not held then
    for i = 1, #self.places do
      self.reserved[i] = 0
    end
  end
  local places, reserved = places_for(self, model)
  local count = #places
  local charges = new_table(count, 0)
  local has_any = false
  model = model or self.call.model
  out:reset()
  for i = 1, count do
    local charge = limits.taken_of(index, places[i].limit, model, taken)
    charges[i] = charge
    if charge > 0 then
      put(charge, places[i])
      has_any = true
    end
  end

  local is_kept = has_any and remember(ledger, number)
  if self.key and held then
    dict:delete(self.key)
  end
  for i = 1, count do
    local charge = is_kept and charges[i] or 0
    local change = charge - reserved[i]
    if change > 0 then
      ledger:add(places[i].key, change, places[i].stop)
    elseif change < 0 then
      dict:incr(places[i].key, change)
    end
  end
end


return M
