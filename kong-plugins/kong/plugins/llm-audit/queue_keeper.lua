-- Keeps Kong's queues of log entries alive in this worker, and knows what is in
-- them. See log_queue.lua for what breaks them and who gets a place.
--
--   * `delete_frontmost_entry` does nothing when nothing is there.
--   * `process_once` never raises, evens out permits and entries before it
--     begins, and never returns without a wait when it did nothing.
--   * `check`, once a second, finds a queue that nobody empties, and does so.
--
-- A worker that is told to end tries to send what it holds for EXIT_SECONDS
-- after the first failure, not for `max_retry_time` (a day): what it gives up
-- is a hole.

local sequence = require "kong.plugins.llm-audit.sequence"

local format = string.format
local kong = kong
local max = math.max
local ngx = ngx
local pairs = pairs
local pcall = pcall
local tostring = tostring
local type = type

local M = {}

-- How long a worker that is to end tries to send. Longer than a collector takes
-- to be restarted, shorter than an operator waits for a reload.
local EXIT_SECONDS = 30

-- Checks, one a second, that find a queue waiting and nobody at it. A timer
-- that was just made begins within one.
local DEAD_AFTER_CHECKS = 5

local REPORT_SECONDS = 60

-- Kong's own functions, once they are replaced.
local original
-- What we know of a queue beyond what it says itself.
local states = setmetatable({}, { __mode = "k" })
-- The queues that got our entries, by name.
local queues = {}
-- What M.room gives, which is asked for with every entry.
local room = { entries = 0, bytes = 0, refused_entries = 0, refused_bytes = 0,
               max_entries = 0, max_bytes = 0 }
local lost = 0
local reported_at, unreported = nil, 0


-- --- telling ----------------------------------------------------------------

local function say(level, ...)
  -- A log that fails must not cost an entry.
  pcall(kong.log[level], ...)
end


-- Counts entries that were given up.
function M.lose(count, reason)
  lost = lost + count
  unreported = unreported + count

  local now = ngx.now()
  if reported_at and now - reported_at < REPORT_SECONDS
    and now >= reported_at
  then
    return
  end

  say("err", format("%d entries of the log queue were left out (%s); their "
                    .. "numbers are missing in llm_logs", unreported, reason))
  reported_at = now
  unreported = 0
end


-- --- what a queue holds ------------------------------------------------------

local function state_of(queue)
  local state = states[queue]
  if not state then
    state = {
      numbers = {},          -- by place in the queue: the entry's number
      refused = {},          -- by place: whether it is of a refused call
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


-- @return whether a queue is made as expected
function M.looks_right(queue)
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


-- @param conf what the queue is made with when it is not there
-- @return what admission.fits wants to know of it: one table, until the next
-- call
function M.room(conf)
  local queue = queues[conf.name]
  if not queue then
    room.entries, room.bytes = 0, 0
    room.refused_entries, room.refused_bytes = 0, 0
    room.max_entries, room.max_bytes = conf.max_entries, conf.max_bytes
    return room
  end

  local state = state_of(queue)
  local waiting = original.count(queue)
  -- A queue keeps its limits until it has run empty; then Kong makes a new one.
  local limits = (waiting > 0 or state.running) and queue or conf

  room.entries = waiting + state.in_hand
  room.bytes = queue.bytes_queued + state.in_hand_bytes
  room.refused_entries = state.refused_entries
  room.refused_bytes = state.refused_bytes
  room.max_entries, room.max_bytes = limits.max_entries, limits.max_bytes

  return room
end


-- --- sending -----------------------------------------------------------------

-- Stands in for the queue's handler, which sends a batch.
local function deliver(state, handler, conf, entries)
  local now = ngx.now()

  if ngx.worker.exiting() then
    sequence.give_sign()
    state.give_up_at = state.give_up_at or now + EXIT_SECONDS
    if state.failing_since and now >= state.give_up_at then
      M.lose(#entries, "this worker ends and the collector does not answer")
      state.failed = false
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


-- Has the queue send by `deliver`.
local function adopt(queue, state)
  local handler = queue.handler
  queue.handler = function(conf, entries)
    return deliver(state, handler, conf, entries)
  end
  state.adopted = true
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
    M.lose(taken, "the collector did not take them in time")
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


-- Notes the entry that was just added to the queue.
-- @param number of the entry
-- @param refused_bytes its size when it is of a refused call, else nil
function M.note(queue, number, refused_bytes)
  -- Kong makes a new one of the same name when one has run empty.
  local state = state_of(queue)
  queues[queue.name] = queue
  if not state.adopted then
    adopt(queue, state)
  end

  local place = queue.back - 1

  state.numbers[place] = number
  if refused_bytes then
    state.refused[place] = true
    state.refused_entries = state.refused_entries + 1
    state.refused_bytes = state.refused_bytes + refused_bytes
  end
end


-- Puts the functions above in the place of Kong's.
-- @param functions Kong's own, by name
-- @param module kong.tools.queue
function M.install(functions, module)
  original = functions
  module.delete_frontmost_entry = delete_frontmost_entry
  module.process_once = process_once
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
