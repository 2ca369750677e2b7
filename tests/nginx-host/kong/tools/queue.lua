--- Test equipment: stands in for Kong's module kong.tools.queue, with its functions,
--- its fields as far as a plugin may look at them, and its faults.
--
-- * One queue a name and worker, in memory: what it holds is lost with the worker.
-- * A batch is complete at max_batch_size entries, or max_coalescing_delay seconds
--   after its first entry was taken; entries leave the queue when the batch is made.
-- * The handler gets the same batch until it returns true. Between two attempts:
--   initial_retry_delay seconds, doubled each time, at most max_retry_delay. After
--   max_retry_time seconds the batch is dropped and an error is logged.
-- * Batches go out one after the other: while one is repeated the rest waits.
-- * A queue keeps the limits it was made with until it has run empty; the handler
--   always sees the newest settings.
-- * Over max_entries or max_bytes of waiting entries the oldest are dropped; an
--   entry larger than max_bytes is refused.
--
-- The fault, seen on Kong 3.9.3: an entry that is dropped has a permit of the
-- semaphore, which has to be taken back, and in the log phase, where plugins add
-- entries, nginx does not allow that. So permits are left of which the entries are
-- gone. A batch that takes one counts more entries than there are, raises, and ends
-- the only timer that empties the queue. The queue stays registered: that worker
-- sends nothing any more, and says nothing.

local semaphore = require "ngx.semaphore"

local queue = {}

local WARN_AT = 0.8           -- of max_entries
local POLL_SECONDS = 1        -- how often a waiting batch looks whether nginx stops
local SHORTEST_WAIT = 0.05    -- a batch does not wait for less than this

local queues = {}

-- As in Kong, methods and functions stand in one table: who replaces one of them
-- replaces it for every queue.
local metatable = { __index = queue }


-- --- state ---------------------------------------------------------------------

function queue:count()
  return self.back - self.front
end


local function has_room(self, entry)
  if self:count() >= self.max_entries then
    return false
  end
  local left = self.max_bytes and self.max_bytes - self.bytes_queued
  if not left then
    return true
  end
  return left > 0 and (type(entry) ~= "string" or #entry <= left)
end


function queue.exists(name)
  return queues["." .. name] ~= nil
end


--- A queue that is not there yet is never full.
function queue.is_full(conf)
  local self = queues["." .. conf.name]
  return self ~= nil and not has_room(self)
end


function queue.can_enqueue(conf, entry)
  local self = queues["." .. conf.name]
  return self == nil or has_room(self, entry)
end


local function message(self, level, text, ...)
  kong.log[level]("[", self.log_tag, "] queue ", self.name, ": ", text:format(...))
end


-- --- taking entries off ----------------------------------------------------------

-- Trusts its caller that there is one.
function queue:delete_frontmost_entry()
  if self.max_bytes then
    self.bytes_queued = self.bytes_queued - #self.entries[self.front]
  end
  self.entries[self.front] = nil
  self.front = self.front + 1
  if self.front == self.back then
    self.front, self.back = 1, 1
  end
end


function queue:drop_oldest_entry()
  assert(self.semaphore:count() > 0)
  -- In the log phase this only returns an error.
  self.semaphore:wait(0)
  self:delete_frontmost_entry()
end


local function deliver(self, batch)
  local began = ngx.now()
  local delay = self.initial_retry_delay
  while true do
    local called, ok, err = pcall(self.handler, self.handler_conf, batch)
    if called and ok == true then
      return
    end
    message(self, "warn", "handler could not process entries: %s",
            tostring(called and err or ok))
    if ngx.now() - began > self.max_retry_time then
      message(self, "err", "could not send entries due to max_retry_time exceeded. "
              .. "%d queue entries were lost", #batch)
      return
    end
    ngx.sleep(math.min(self.max_retry_delay, delay))
    delay = math.min(delay * 2, self.max_retry_delay)
  end
end


-- One permit for each entry of the batch; false when there is none at all.
local function count_batch(self)
  if not self.semaphore:wait(0) then
    return false
  end
  local began = ngx.now()
  local size = 1
  while size < self.max_batch_size do
    local left = self.max_coalescing_delay - (ngx.now() - began)
    if left < SHORTEST_WAIT then
      break
    end
    local wait = math.min(left, POLL_SECONDS)
    if ngx.worker.exiting() then
      self.max_coalescing_delay = SHORTEST_WAIT
      wait = SHORTEST_WAIT
    end
    if self.semaphore:wait(wait) then
      size = size + 1
    end
  end
  return size
end


function queue:process_once()
  local size = count_batch(self)
  if not size then
    return
  end
  local batch = { unpack(self.entries, self.front, self.front + size - 1) }
  for _ = 1, size do
    self:delete_frontmost_entry()
  end
  deliver(self, batch)
end


-- --- adding entries --------------------------------------------------------------

local function warn_when_nearly_full(self)
  if self:count() < self.max_entries * WARN_AT then
    self.warned = nil
  elseif not self.warned then
    self.warned = true
    message(self, "warn", "queue at %s%% capacity", WARN_AT * 100)
  end
end


local function make_room(self, entry)
  if self:count() >= self.max_entries then
    message(self, "err", "queue full, dropping old entries until processing is successful again")
    self:drop_oldest_entry()
  end
  local max_bytes = self.max_bytes
  if not max_bytes then
    return true
  end
  if #entry > max_bytes then
    local err = ("string to be queued is longer (%d bytes) than the queue's max_bytes (%d bytes)")
                :format(#entry, max_bytes)
    message(self, "err", "%s", err)
    return nil, err
  end
  local dropped = 0
  while self.bytes_queued + #entry > max_bytes do
    self:drop_oldest_entry()
    dropped = dropped + 1
  end
  if dropped > 0 then
    message(self, "err", "byte capacity exceeded, %d queue entries were dropped", dropped)
  end
  return true
end


local function new(conf, handler)
  local self = {
    key = "." .. conf.name,
    handler = handler,
    semaphore = assert(semaphore.new()),
    entries = {},
    front = 1,
    back = 1,
    bytes_queued = 0,
  }
  for option, value in pairs(conf) do
    self[option] = value
  end
  return setmetatable(self, metatable)
end


local function work(_, self)
  while self:count() > 0 do
    self:process_once()
  end
  queues[self.key] = nil
end


--- Adds an entry to the queue of conf.name, which is made when it is not there.
--- `handler(handler_conf, batch)` sends a batch and returns true when that worked.
--- true; nil, err.
function queue.enqueue(conf, handler, handler_conf, entry)
  local self = queues["." .. conf.name]
  if not self then
    self = new(conf, handler)
    kong.timer:named_at("queue " .. self.key, 0, work, self)
    queues[self.key] = self
  end
  self.handler_conf = handler_conf

  warn_when_nearly_full(self)
  local ok, err = make_room(self, entry)
  if not ok then
    return nil, err
  end
  if self.max_bytes then
    self.bytes_queued = self.bytes_queued + #entry
  end
  self.entries[self.back] = entry
  self.back = self.back + 1
  self.semaphore:post()
  return true
end


--- What enqueue wants, out of a plugin's settings.
function queue.get_plugin_params(plugin_name, config, name)
  local conf = config.queue
  conf.log_tag = plugin_name .. " plugin " .. kong.plugin.get_id()
  conf.name = conf.name or name
  return conf
end


return queue
