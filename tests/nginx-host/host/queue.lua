--- The queue between a logging plugin and where it sends to, after the contract
--- of Kong's queue library (`queue.*` of http-log in the Kong plugin reference).
--
-- * One queue a name and worker, in memory: what it holds is lost with the worker.
-- * A batch is complete at max_batch_size entries, or max_coalescing_delay seconds
--   after its first entry was taken; entries leave the queue when the batch is made.
-- * The handler gets the same batch until it returns true. Between two attempts:
--   initial_retry_delay seconds, doubled each time, at most max_retry_delay. After
--   max_retry_time seconds the batch is dropped and an error is logged.
-- * Batches go out one after the other: while one is repeated the rest waits.
-- * Over max_entries or max_bytes of waiting entries the oldest are dropped; an
--   entry larger than max_bytes is refused.
-- * A queue keeps the limits it was made with until it has run empty; the handler
--   always sees the newest settings.

local semaphore = require "ngx.semaphore"

local queue = {}

local WARN_AT = 0.8           -- of max_entries
local POLL_SECONDS = 1        -- how often a waiting batch looks whether nginx stops
local SHORTEST_WAIT = 0.05    -- a batch does not wait for less than this


local queues = {}

local methods = {}
methods.__index = methods


function methods:count()
  return self.back - self.front
end


function methods:message(level, text, ...)
  kong.log[level]("[", self.tag, "] queue ", self.name, ": ", text:format(...))
end


function methods:remove_oldest()
  self.bytes = self.bytes - #self.entries[self.front]
  self.entries[self.front] = nil
  self.front = self.front + 1
  if self.front == self.back then
    self.front, self.back = 1, 1
  end
end


function methods:drop_oldest()
  self.ready:wait(0)
  self:remove_oldest()
end


function methods:make_room(entry)
  local options = self.options
  if self:count() >= options.max_entries * WARN_AT then
    if not self.warned then
      self:message("warn", "queue at %s%% capacity", WARN_AT * 100)
      self.warned = true
    end
  else
    self.warned = nil
  end
  if self:count() >= options.max_entries then
    self:message("err", "queue full, dropping old entries until processing is successful again")
    self:drop_oldest()
  end
  local max_bytes = options.max_bytes
  if not max_bytes then
    return true
  end
  if #entry > max_bytes then
    local err = ("string to be queued is longer (%d bytes) than the queue's max_bytes (%d bytes)")
                :format(#entry, max_bytes)
    self:message("err", "%s", err)
    return nil, err
  end
  local dropped = 0
  while self:count() > 0 and self.bytes + #entry > max_bytes do
    self:drop_oldest()
    dropped = dropped + 1
  end
  if dropped > 0 then
    self:message("err", "byte capacity exceeded, %d queue entries were dropped", dropped)
  end
  return true
end


function methods:add(entry)
  local ok, err = self:make_room(entry)
  if not ok then
    return nil, err
  end
  self.entries[self.back] = entry
  self.back = self.back + 1
  self.bytes = self.bytes + #entry
  self.ready:post()
  return true
end


--- Takes the next batch off the queue; nil when it is empty.
function methods:take_batch()
  if not self.ready:wait(0) then
    return nil
  end
  local options = self.options
  local began = ngx.now()
  local size = 1
  while size < options.max_batch_size do
    local left = options.max_coalescing_delay - (ngx.now() - began)
    if left < SHORTEST_WAIT then
      break
    end
    local wait = math.min(left, POLL_SECONDS)
    if ngx.worker.exiting() then
      options.max_coalescing_delay = SHORTEST_WAIT
      wait = SHORTEST_WAIT
    end
    if self.ready:wait(wait) then
      size = size + 1
    end
  end
  -- Dropping while we waited took from the semaphore what it took from the queue,
  -- but entries counted in `size` may be gone too.
  size = math.min(size, self:count())
  local batch = {}
  for i = 1, size do
    batch[i] = self.entries[self.front]
    self:remove_oldest()
  end
  return batch
end


function methods:deliver(batch)
  local options = self.options
  local began = ngx.now()
  local delay = options.initial_retry_delay
  while true do
    local called, ok, err = pcall(self.handler, self.config, batch)
    if called and ok then
      return
    end
    self:message("warn", "handler could not process entries: %s",
                 tostring(called and err or ok))
    if ngx.now() - began > options.max_retry_time then
      self:message("err", "could not send entries due to max_retry_time exceeded. "
                   .. "%d queue entries were lost", #batch)
      return
    end
    ngx.sleep(math.min(options.max_retry_delay, delay))
    delay = math.min(delay * 2, options.max_retry_delay)
  end
end


function methods:work()
  while self:count() > 0 do
    local batch = self:take_batch()
    if batch and #batch > 0 then
      self:deliver(batch)
    end
  end
  queues[self.name] = nil
end


local function new(name, tag, options, handler)
  local own_options = {}
  for key, value in pairs(options) do
    own_options[key] = value
  end
  return setmetatable({
    name = name,
    tag = tag,
    options = own_options,
    handler = handler,
    ready = assert(semaphore.new()),
    entries = {},
    front = 1,
    back = 1,
    bytes = 0,
  }, methods)
end


--- Adds an entry (a string) to the queue of this name; true, or nil, err.
--- `handler(config, batch)` sends a batch and returns true when that worked.
function queue.enqueue(name, tag, options, handler, config, entry)
  local self = queues[name]
  if not self then
    self = new(name, tag, options, handler)
    queues[name] = self
    local ok, err = ngx.timer.at(0, function()
      self:work()
    end)
    if not ok then
      queues[name] = nil
      return nil, err
    end
  end
  self.config = config
  return self:add(entry)
end


return queue
