-- A model server of fixed capacity, callers, and workers of Kong that run
-- llm-queue's own handler, all in simulated time: the same in every run, and a
-- minute of it takes a second. The server is tests/bench/fair_server.py's.

local queue_stubs = require "spec.helpers.queue_stubs"
local shared_dict = require "spec.helpers.shared_dict"

local STEP_SECONDS = 0.007
local PROMPT_TOKENS_A_SECOND = 10000

local M = {}

local World = {}
World.__index = World


-- @param options { places, workers, config }
function M.new(options)
  local world = setmetatable({
    time = 1795769382.941, events = {}, order = 0,
    places = options.places or 8, running = {}, line = {}, is_stepping = false,
    config = { in_flight = options.places or 8, nodes = 1, max_waiting = 10000,
               max_waiting_per_user = 10000, max_wait_seconds = 600,
               others_wait_percent = 5, weights = {} },
    errors = {},
  }, World)
  for name, value in pairs(options.config or {}) do
    world.config[name] = value
  end
  world.dict = shared_dict.new({ now = function()
    return world:now()
  end })
  world.workers = {}
  for number = 1, options.workers or 2 do
    world.workers[number] = world:worker(number)
  end

  return world
end


-- Whole milliseconds, as nginx has them.
function World:now()
  return math.floor(self.time * 1000) / 1000
end


-- --- events -----------------------------------------------------------------

local function is_before(one, other)
  return one.at < other.at or one.at == other.at and one.order < other.order
end


-- A binary heap.
function World:at(time, run)
  local events = self.events
  self.order = self.order + 1
  local event = { at = time, order = self.order, run = run }
  local i = #events + 1
  while i > 1 and is_before(event, events[math.floor(i / 2)]) do
    events[i] = events[math.floor(i / 2)]
    i = math.floor(i / 2)
  end
  events[i] = event

  return event
end


local function pop(events)
  local first, last = events[1], table.remove(events)
  local size, i = #events, 1
  while size > 0 and 2 * i <= size do
    local child = 2 * i
    if child < size and is_before(events[child + 1], events[child]) then
      child = child + 1
    end
    if is_before(last, events[child]) then
      break
    end
    events[i] = events[child]
    i = child
  end
  if size > 0 then
    events[i] = last
  end

  return first
end


-- Runs all that happens in so many seconds.
function World:run(seconds)
  local finish = self.time + seconds
  while self.events[1] and self.events[1].at <= finish do
    local event = pop(self.events)
    if not event.is_off then
      self.time = math.max(self.time, event.at)
      event.run()
    end
  end
  self.time = finish
end


-- --- a worker ---------------------------------------------------------------

-- Resumes a thread of a worker with the worker's globals in place.
local function resume(thread, ...)
  _G.ngx, _G.kong = thread.worker.ngx, thread.worker.kong
  thread.worker.call = thread.call
  local ok, err = coroutine.resume(thread.co, ...)
  assert(ok, err)
end


local function spawn(worker, call, run)
  local thread = { worker = worker, call = call,
                   co = coroutine.create(run) }
  thread.worker.threads[thread.co] = thread
  resume(thread)
end


function World:sleep(worker, seconds)
  local thread = worker.threads[coroutine.running()]
  self:at(self.time + seconds, function()
    resume(thread)
  end)
  coroutine.yield()
end


function World:semaphore(worker)
  local semaphore = { count = 0 }

  function semaphore.post()
    local waits = semaphore.waits
    if not waits then
      semaphore.count = semaphore.count + 1
      return
    end
    semaphore.waits = nil
    waits.alarm.is_off = true
    self:at(self.time, function()
      resume(waits.thread, true)
    end)
  end

  function semaphore.wait(_, seconds)
    if semaphore.count > 0 then
      semaphore.count = semaphore.count - 1
      return true
    end

    local thread = worker.threads[coroutine.running()]
    semaphore.waits = { thread = thread }
    semaphore.waits.alarm = self:at(self.time + seconds, function()
      semaphore.waits = nil
      resume(thread, nil)
    end)

    return coroutine.yield()
  end

  return semaphore
end


function World:worker(number)
  local worker = { threads = setmetatable({}, { __mode = "k" }) }
  worker.ngx = {
    now = function()
      return self:now()
    end,
    shared = { llm_queue = self.dict },
    sleep = function(seconds)
      self:sleep(worker, seconds)
    end,
    timer = { at = function(_, run)
      self:at(self.time, function()
        spawn(worker, nil, function()
          run(false)
        end)
      end)
      return true
    end },
    worker = { exiting = function()
      return false
    end },
  }
  worker.kong = {
    client = {
      get_consumer = function()
        return { username = worker.call.user, tags = worker.call.tags }
      end,
      get_credential = function()
        return { tags = { "class:" .. (worker.call.class or "interactive") } }
      end,
    },
    ctx = { plugin = setmetatable({}, {
      __index = function(_, name)
        return worker.call.ctx[name]
      end,
      __newindex = function(_, name, value)
        worker.call.ctx[name] = value
      end,
    }) },
    log = { err = function(line)
      self.errors[#self.errors + 1] = line
    end },
  }

  _G.ngx, _G.kong = worker.ngx, worker.kong
  worker.handler = queue_stubs.handler("worker" .. number, {
    of_call = function()
      return worker.call.asked
    end,
    refused = function()
      worker.call.is_refused = true
    end,
    semaphores = { new = function()
      return self:semaphore(worker)
    end },
  })

  return worker
end


-- --- the server -------------------------------------------------------------

-- A step gives each running call a token; a call that begins has its prompt
-- read within its first one, for which all wait.
function World:step()
  local prompts = 0
  while #self.line > 0 and #self.running < self.places do
    local call = table.remove(self.line, 1)
    self.running[#self.running + 1] = call
    prompts = prompts + call.prompt
  end
  if #self.running == 0 then
    self.is_stepping = false
    return
  end

  self:at(self.time + STEP_SECONDS + prompts / PROMPT_TOKENS_A_SECOND,
          function()
    local going = {}
    for _, call in ipairs(self.running) do
      call.first = call.first or self.time
      call.left = call.left - 1
      if call.left > 0 then
        going[#going + 1] = call
      else
        self:at(self.time, function()
          self:finish(call)
        end)
      end
    end
    self.running = going
    self:step()
  end)
end


function World:serve(call)
  self.line[#self.line + 1] = call
  if not self.is_stepping then
    self.is_stepping = true
    self:at(self.time, function()
      self:step()
    end)
  end
end


function World:finish(call)
  spawn(call.worker, call, function()
    call.worker.handler.log()
  end)
  call.done = self.time
  call.ended(call)
end


-- --- callers ----------------------------------------------------------------

-- Starts a call.
-- @param call { user, prompt, tokens: of prompt and answer, class, tags,
-- asked: what is known of the request, ended: called with it when it has;
-- then `began`, `first` and `done` say when, `is_refused` that it was not
-- served }
function World:call(call)
  call.began, call.left = self.time, call.tokens
  call.ctx, call.asked = {}, call.asked or {}
  call.worker = self.workers[math.random(#self.workers)]
  spawn(call.worker, call, function()
    call.worker.handler:access(self.config)
    if call.is_refused then
      self:at(self.time, function()
        self:finish(call)
      end)
    else
      self:serve(call)
    end
  end)
end


-- Calls again and again, one after the other.
-- @param make returns a call
-- @param pause returns the seconds from the beginning of a call to the next
-- @param note called with each call that ended
function World:person(make, pause, note)
  local function go()
    local call = make()
    local due = self.time + pause()
    function call.ended()
      note(call)
      self:at(math.max(due, self.time), go)
    end
    self:call(call)
  end
  self:at(self.time + pause() * math.random(), go)
end


return M
