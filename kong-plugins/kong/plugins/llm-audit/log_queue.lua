-- Keeps Kong's queue of log entries from breaking, and says what becomes of
-- entries that do not fit.
--
-- Kong's queue (kong/tools/queue.lua, read at 3.9.3 and in 3.9.4's branch,
-- where it is the same) drops its oldest entries when it overflows. Each has a
-- permit of a semaphore, and in the log phase, where http-log adds entries,
-- nginx does not let the permit be taken back. A batch made of such permits
-- raises (`#self.entries[self.front]` of nil), which ends the one timer that
-- sends; the queue stays registered, and that worker never sends an entry
-- again.
--
-- So, in each worker:
--   * `enqueue` asks first whether the entry fits (admission.lua), for entries
--     that llm-audit has completed. Nothing is ever dropped by Kong.
--   * The queue is kept alive whatever happens to it (queue_keeper.lua). This
--     holds for every queue of the worker, the former for ours.
--
-- Where Kong's module does not look as expected nothing is touched, and one
-- line in the log says so.

local admission = require "kong.plugins.llm-audit.admission"
local cjson = require "cjson"
local entry_bodies = require "kong.plugins.llm-audit.entry_bodies"
local queue_keeper = require "kong.plugins.llm-audit.queue_keeper"
local sequence = require "kong.plugins.llm-audit.sequence"

local find = string.find
local kong = kong
local ngx = ngx
local pairs = pairs
local pcall = pcall
local sub = string.sub
local tostring = tostring
local type = type

local M = {}

local FUNCTIONS = { "enqueue", "count", "delete_frontmost_entry",
                    "process_once", "exists" }

-- Entries of interrupted calls that wait for the first entry of http-log.
local MAX_PENDING = 64

-- Kong's own functions, once they are replaced.
local original
-- The queue that an `enqueue` under way has asked for its length.
local observed
-- The arguments of the last `enqueue` of an entry of ours, once there was one.
local sender = {}
local pending = {}


-- Kong asks a queue for its length before it adds to it, which tells us the
-- queue.
local function count(queue)
  observed = queue

  return original.count(queue)
end


-- --- adding ------------------------------------------------------------------

-- The entry of this call without its bodies, as http-log would encode it.
local function without_bodies(entry)
  local set_value = kong.log.set_serialize_value
  set_value("request.body", nil)
  set_value("response.body", nil)
  set_value("llm.shed", true)
  entry_bodies.drop(entry)

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
    value = without_bodies(entry)
    if admission.fits(room, #value, "bare") then
      return value
    end
  end
end


-- From here on the collector waits for the number of this entry, and whoever
-- wants to know under which number the call is counted is told.
local function give_number(entry)
  sequence.give(entry.seq)

  local limited = entry.limited
  if limited then
    local ok, err = pcall(limited.on_number, limited, entry.seq, entry.llm,
                          entry.hides_usage)
    if not ok then
      pcall(kong.log.err, "a call was not charged: ", tostring(err))
    end
  end
end


local function add(entry, conf, handler, handler_conf, value)
  -- First of all.
  give_number(entry)

  value = admit(queue_keeper.room(conf), entry,
                entry_bodies.fill_in(entry, value))
  if not value then
    queue_keeper.lose(1, "the queue is full")
    return
  end

  observed = nil
  local ok, err = original.enqueue(conf, handler, handler_conf, value)
  if not ok then
    error(err)
  end

  local queue = observed
  if queue and queue_keeper.looks_right(queue) then
    queue_keeper.note(queue, entry.seq, entry.refused and #value or nil)
  end
end


local function try_to_add(...)
  local ok, err = pcall(add, ...)
  if not ok then
    queue_keeper.lose(1, tostring(err))
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
         and find(conf.log_tag, "http-log", 1, true) == 1
end


local function enqueue(conf, handler, handler_conf, value)
  local entry = entry_at_hand()
  if not entry or not is_log_entry(conf, value) then
    return original.enqueue(conf, handler, handler_conf, value)
  end

  sender.conf, sender.handler, sender.handler_conf = conf, handler, handler_conf
  if entry.kept_out then
    return true
  end

  try_to_add(entry, conf, handler, handler_conf, value)
  entry_bodies.restore(entry)
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
  queue_keeper.install(original, module)

  return true
end


function M.is_installed()
  return original ~= nil
end


-- Hands over the entry that the plugin has completed for this call: { seq,
-- refused, has_bodies, kept_out }, with what entry_bodies wants of it; and
-- { limited, llm, hides_usage }, see llm_gateway.reading, where it has a limit.
function M.expect(entry)
  kong.ctx.shared.llm_audit_entry = entry
  if not original and entry.seq then
    -- Nobody will tell what becomes of it.
    give_number(entry)
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

  if sender.conf then
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
  return sender.handler_conf
end


return M
