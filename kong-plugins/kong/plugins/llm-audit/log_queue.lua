-- Keeps Kong's queue of log entries from breaking, and says what becomes of
-- entries that do not fit.
--
-- Kong's queue (kong/tools/queue.lua, read at 3.9.3; 3.9.4 and 3.9.5 are the
-- same there) drops its oldest entries when it overflows. Each has a permit of
-- a semaphore, and in the log phase, where http-log adds entries, nginx does
-- not let the permit be taken back. A batch made of such permits raises
-- (`#self.entries[self.front]` of nil), which ends the one timer that sends;
-- the queue stays registered, and that worker never sends an entry again.
--
-- So, in each worker:
--   * `enqueue` asks first whether the entry fits (admission.lua), for entries
--     that llm-audit has completed. Nothing is ever dropped by Kong.
--   * `delete_frontmost_entry` does nothing when nothing is there.
--   * `process_once` never raises, evens out permits and entries before it
--     begins, and never returns without a wait when it did nothing.
--   * `check`, once a second, finds a queue that nobody empties, and does so.
-- The last three hold for every queue of the worker, the first for ours.
--
-- A worker that is told to end tries to send what it holds for EXIT_SECONDS
-- after the first failure, not for `max_retry_time` (a day): what it gives up
-- is a hole.
--
-- Where Kong's module does not look as expected nothing is touched, and one
-- line in the log says so.

local admission = require "kong.plugins.llm-audit.admission"
local cjson = require "cjson"
local sequence = require "kong.plugins.llm-audit.sequence"

local format = string.format
local kong = kong
local max = math.max
local ngx = ngx
local pairs = pairs
local pcall = pcall
local sub = string.sub
local tostring = tostring
local type = type

local M = {}

local FUNCTIONS = { "enqueue", "count", "delete_frontmost_entry",
                    "process_once", "exists" }

-- How long a worker that is to end tries to send. Longer than a collector takes
-- to be restarted, shorter than an operator waits for a reload.
local EXIT_SECONDS = 30

-- Checks, one a second, that find a queue waiting and nobody at it. A timer
-- that was just made begins within one.
local DEAD_AFTER_CHECKS = 5

-- Entries of interrupted calls that wait for the first entry of http-log.
local MAX_PENDING = 64

local REPORT_SECONDS = 60

-- Kong's own functions, once they are replaced.
local original
-- What we know of a queue beyond what it says itself.
local states = setmetatable({}, { __mode = "k" })
-- The queues that got our entries, by name.
local queues = {}
-- The queue that an `enqueue` under way has asked for its length.
local observed
-- The arguments of the last `enqueue` of an entry of ours.
local sender
local pending = {}
local lost = 0
local reported_at, unreported = nil, 0


-- --- telling ----------------------------------------------------------------

local function say(level, ...)
  -- A log that fails must not cost an entry.
  pcall(kong.log[level], ...)
end


local function lose(count, reason)
  lost = lost + count
  unreported = unreported + count

  local now = ngx.now()
  if reported_at and now - reported_at < REPORT_SECONDS
    and now >= reported_at
  then
    return
  end

  say("err", format("%d log entries were left out (%s); their numbers are "
                    .. "missing in llm_logs", unreported, reason))
  reported_at = now
  unreported = 0
end


-- --- what a queue holds ------------------------------------------------------

local function state_of(queue)
  local state = states[queue]
  if not state then
    state = {
      numbers = {},          -- by place in the queue: the entry's number
      refused = {},          -- by place: bytes of an entry of a refused call
      refused_entries = 0,
      refused_bytes = 0,
      in_hand = 0,           -- entries of the batch under way, and their bytes
      in_hand_bytes = 0,
      unattended = 0,        -- checks that found entries and nobody at them
    }
    states[queue] = state
  end

  return state
end


local function looks_right(queue)
  local permits = queue.semaphore

  return type(queue.entries) == "table"
         and type(queue.front) == "number" and type(queue.back) == "number"
         and type(queue.max_entries) == "number"
         and type(queue.handler) == "function"
         and (queue.max_bytes == nil or type(queue.max_bytes) == "number"
              and type(queue.bytes_queued) == "number")
         and permits ~= nil and permits.count ~= nil and permits.wait ~= nil
         and permits.post ~= nil
end


local function room_of(queue, conf)
  if not queue then
    return { entries = 0, bytes = 0, refused_entries = 0, refused_bytes = 0,
             max_entries = conf.max_entries, max_bytes = conf.max_bytes }
  end

  local state = state_of(queue)
  local waiting = original.count(queue)
  -- A queue keeps its limits until it has run empty; then Kong makes a new one.
  local limits = (waiting > 0 or state.running) and queue or conf

  return {
    entries = waiting + state.in_hand,
    bytes = queue.bytes_queued + state.in_hand_bytes,
    refused_entries = state.refused_entries,
    refused_bytes = state.refused_bytes,
    max_entries = limits.max_entries,
    max_bytes = limits.max_bytes,
  }
end


-- --- sending -----------------------------------------------------------------

-- Stands in for the queue's handler, which sends a batch.
local function deliver(state, handler, conf, entries)
  local now = ngx.now()

  if ngx.worker.exiting() then
    sequence.give_sign()
    state.give_up_at = state.give_up_at or now + EXIT_SECONDS
    if state.failing_since and now >= state.give_up_at then
      lose(#entries, "this worker ends and the collector does not answer")
      return true
    end
  end

  state.failing_since = state.failing_since or now
  state.failed = true
  local ok, err = handler(conf, entries)
  if ok == true then
    state.failing_since = nil
    state.failed = false
  end

  return ok, err
end


local function adopt(queue)
  local state = state_of(queue)
  queues[queue.name] = queue
  if state.adopted then
    return state
  end

  local handler = queue.handler
  queue.handler = function(conf, entries)
    return deliver(state, handler, conf, entries)
  end
  state.adopted = true

  return state
end


-- One permit an entry: fewer and the queue would spin, more and a batch would
-- count entries that are gone.
local function even_out_permits(queue)
  local permits = queue.semaphore
  local surplus = permits:count() - original.count(queue)

  while surplus > 0 and permits:wait(0) do
    surplus = surplus - 1
  end
  if surplus < 0 then
    permits:post(-surplus)
  end
end


local function process_once(queue)
  local state = state_of(queue)
  if state.running then
    -- Two timers at one queue: one of them was thought dead.
    ngx.sleep(1)
    return
  end

  state.running = true
  state.failed = false
  local ok, err = pcall(even_out_permits, queue)
  if ok then
    ok, err = pcall(original.process_once, queue)
  end

  local taken = state.in_hand
  if state.failed and taken > 0 then
    lose(taken, "the collector did not take them in time")
  end
  state.running = false
  state.failed = false
  state.in_hand = 0
  state.in_hand_bytes = 0
  state.in_hand_number = nil

  if not ok then
    say("err", "the queue of log entries failed and goes on: ", tostring(err))
  end
  if not ok or taken == 0 then
    ngx.sleep(1)
  end
end


local function delete_frontmost_entry(queue)
  if original.count(queue) <= 0 then
    return
  end

  local state = state_of(queue)
  local place = queue.front
  local entry = queue.entries[place]
  local size = type(entry) == "string" and #entry or 0
  local number = state.numbers[place]

  if state.running then
    state.in_hand = state.in_hand + 1
    state.in_hand_bytes = state.in_hand_bytes + size
    state.in_hand_number = state.in_hand_number or number
  end

  state.numbers[place] = nil
  if state.refused[place] then
    state.refused[place] = nil
    state.refused_entries = state.refused_entries - 1
    state.refused_bytes = state.refused_bytes - size
  end

  return original.delete_frontmost_entry(queue)
end


local function count(queue)
  observed = queue

  return original.count(queue)
end


-- --- adding ------------------------------------------------------------------

-- The entry of this call without its bodies, as http-log would encode it.
local function without_bodies()
  local set_value = kong.log.set_serialize_value
  set_value("request.body", nil)
  set_value("response.body", nil)
  set_value("llm.shed", true)

  return cjson.encode(kong.log.serialize())
end


-- @return what is to be added, nil when there is no room even for that
local function admit(room, entry, value)
  local kind = entry.refused and "refused" or entry.has_bodies and "whole"
               or "bare"
  if admission.fits(room, #value, kind) then
    return value
  end

  if kind == "whole" then
    value = without_bodies()
    if admission.fits(room, #value, "bare") then
      return value
    end
  end
end


local function add(entry, conf, handler, handler_conf, value)
  -- First of all: from here on the collector waits for this number.
  sequence.give(entry.seq)

  value = admit(room_of(queues[conf.name], conf), entry, value)
  if not value then
    lose(1, "the queue is full")
    return
  end

  observed = nil
  local ok, err = original.enqueue(conf, handler, handler_conf, value)
  if not ok then
    error(err)
  end

  local queue = observed
  if queue and looks_right(queue) then
    local state = adopt(queue)
    local place = queue.back - 1
    state.numbers[place] = entry.seq
    if entry.refused then
      state.refused[place] = true
      state.refused_entries = state.refused_entries + 1
      state.refused_bytes = state.refused_bytes + #value
    end
  end
end


local function try_to_add(...)
  local ok, err = pcall(add, ...)
  if not ok then
    lose(1, tostring(err))
  end
end


local function add_pending()
  local waiting = pending
  pending = {}
  for i = 1, #waiting do
    local entry = waiting[i]
    entry.seq = sequence.next()
    entry.llm.seq = entry.seq
    local llm = cjson.encode(entry.llm)
    try_to_add(entry, sender.conf, sender.handler, sender.handler_conf,
               '{"llm":' .. llm .. "," .. sub(entry.text, 2))
  end
end


-- The entry that llm-audit has completed for the call at hand.
local function entry_at_hand()
  if ngx.get_phase() ~= "log" then
    return nil
  end

  local shared = kong.ctx.shared

  return shared and shared.llm_audit_entry
end


-- Told by the tag that http-log gives: other plugins of Kong have queues, too.
local function is_log_entry(conf, value)
  return type(value) == "string" and type(conf) == "table"
         and type(conf.name) == "string" and type(conf.max_entries) == "number"
         and type(conf.log_tag) == "string"
         and sub(conf.log_tag, 1, 8) == "http-log"
end


local function enqueue(conf, handler, handler_conf, value)
  local entry = entry_at_hand()
  if not entry or not is_log_entry(conf, value) then
    return original.enqueue(conf, handler, handler_conf, value)
  end

  sender = { conf = conf, handler = handler, handler_conf = handler_conf }
  if entry.kept_out then
    return true
  end

  try_to_add(entry, conf, handler, handler_conf, value)
  if pending[1] then
    add_pending()
  end

  -- http-log would write a line for every entry that was left out.
  return true
end


-- --- for the plugin ---------------------------------------------------------

-- Puts the functions above in the place of Kong's.
-- @param module kong.tools.queue
-- @return true, or nil and what is different
function M.install(module)
  if original then
    return true
  end

  if type(module) ~= "table" then
    return nil, "there is no module kong.tools.queue"
  end
  for _, name in pairs(FUNCTIONS) do
    if type(module[name]) ~= "function" then
      return nil, "kong.tools.queue has no function " .. name
    end
  end

  original = {}
  for _, name in pairs(FUNCTIONS) do
    original[name] = module[name]
  end
  module.enqueue = enqueue
  module.count = count
  module.delete_frontmost_entry = delete_frontmost_entry
  module.process_once = process_once

  return true
end


function M.is_installed()
  return original ~= nil
end


-- Hands over the entry that the plugin has completed for this call: { seq,
-- refused, has_bodies, kept_out }.
function M.expect(entry)
  kong.ctx.shared.llm_audit_entry = entry
  if not original and entry.seq then
    -- Nobody will tell what becomes of it.
    sequence.give(entry.seq)
  end
end


-- For a call that ended so early that http-log does not run for it: adds the
-- entry in its place, at the latest with the next entry of this worker.
-- @param entry as for M.expect
-- @param llm what the entry has under that name
function M.add_alone(entry, llm)
  if not original or entry.kept_out then
    return
  end

  if sender then
    try_to_add(entry, sender.conf, sender.handler, sender.handler_conf,
               cjson.encode(kong.log.serialize()))

  elseif #pending < MAX_PENDING then
    kong.log.set_serialize_value("llm", nil)
    entry.text = cjson.encode(kong.log.serialize())
    entry.llm = llm
    pending[#pending + 1] = entry
  end
end


-- The settings of the http-log that sends our entries; nil before the first.
function M.sender_conf()
  return sender and sender.handler_conf
end


local function empty(_, queue)
  while original.count(queue) > 0 do
    process_once(queue)
  end
end


-- Finds queues that nobody empties, and begins to.
function M.check()
  for name, queue in pairs(queues) do
    local state = state_of(queue)
    local waiting = original.count(queue)
    if waiting <= 0 and not state.running then
      queues[name] = nil

    elseif state.running then
      state.unattended = 0

    else
      state.unattended = state.unattended + 1
      if state.unattended == DEAD_AFTER_CHECKS then
        say("err", "nobody sent the ", waiting, " log entries of the queue ",
            name, "; sending them now")
        kong.timer:at(0, empty, queue)
        state.unattended = 0
      end
    end
  end
end


-- @return { entries, bytes, stalled_seconds, lost, done }: what waits in this
-- worker, for how long sending has failed, what was left out, and the number up
-- to which nothing waits any more
function M.state()
  local sum = { entries = 0, bytes = 0, stalled_seconds = 0, lost = lost,
                done = sequence.last() }
  local now = ngx.now()

  for _, queue in pairs(queues) do
    local state = state_of(queue)
    sum.entries = sum.entries + original.count(queue) + state.in_hand
    sum.bytes = sum.bytes + queue.bytes_queued + state.in_hand_bytes
    if state.failing_since then
      sum.stalled_seconds = max(sum.stalled_seconds,
                                now - state.failing_since)
    end

    local first = state.in_hand_number
    local place = queue.front
    while not first and place < queue.back do
      first = state.numbers[place]
      place = place + 1
    end
    if first and first <= sum.done then
      sum.done = first - 1
    end
  end

  return sum
end


return M
