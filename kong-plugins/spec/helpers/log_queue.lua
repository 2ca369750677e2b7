-- The queue module of the nginx test host, which has the faults of Kong's, with
-- as much of nginx around it as it takes: a semaphore that is disabled in the
-- log phase, timers that a test runs itself, a shared dict.

local utf8_text = require "spec.helpers.utf8_text"

local M = {}

local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$")
local MODULE = here .. "/../../../tests/nginx-host/kong/tools/queue.lua"
local PLUGIN = "kong.plugins.llm-audit."


local function new_semaphore(world)
  local permits = 0

  return {
    count = function()
      return permits
    end,
    post = function(_, more)
      permits = permits + (more or 1)
    end,
    wait = function()
      if world.phase == "log" then
        return nil, "API disabled in the context of log_by_lua*"
      end
      if permits == 0 then
        return nil, "timeout"
      end
      permits = permits - 1
      return true
    end,
  }
end


local function new_dict(values)
  local lists = {}

  local dict = {}
  function dict.get(_, key)
    return values[key]
  end
  function dict.set(_, key, value)
    values[key] = value
    return true
  end
  function dict.safe_add(_, key, value)
    if values[key] ~= nil then
      return false, "exists"
    end
    values[key] = value
    return true
  end
  function dict.incr(_, key, by, init)
    if values[key] == nil and not init then
      return nil, "not found"
    end
    values[key] = (values[key] or init) + by
    return values[key]
  end
  function dict.delete(_, key)
    values[key] = nil
  end
  function dict.llen(_, key)
    return #(lists[key] or {})
  end
  function dict.lpush(_, key, value)
    lists[key] = lists[key] or {}
    table.insert(lists[key], 1, value)
  end
  function dict.rpush(_, key, value)
    lists[key] = lists[key] or {}
    table.insert(lists[key], value)
  end
  function dict.rpop(_, key)
    return table.remove(lists[key] or {})
  end

  return dict
end


-- Settings of a queue as http-log makes them of its own.
-- @param max_bytes nil where only the number of entries is bounded
function M.settings(max_bytes)
  return { name = "q", log_tag = "http-log plugin x", max_batch_size = 10,
           max_coalescing_delay = 0, max_entries = 1000, max_bytes = max_bytes,
           max_retry_time = 86400, initial_retry_delay = 1,
           max_retry_delay = 10, concurrency_limit = 1 }
end


-- A worker of its own. `world` has: phase, time, exiting, sleeps (seconds that
-- were slept), timers, warnings, dict (what is in the shared dict), Queue, and
-- the plugin's modules under their names.
function M.new()
  local world = { phase = "log", time = 1700000000, timers = {}, sleeps = {},
                  said = {}, dict = {}, exiting = false }

  local function say(...)
    world.said[#world.said + 1] = table.concat({ ... })
  end

  _G.ngx = {
    now = function()
      return world.time
    end,
    sleep = function(seconds)
      world.sleeps[#world.sleeps + 1] = seconds
      world.time = world.time + seconds
      if world.on_sleep then
        world.on_sleep()
      end
    end,
    get_phase = function()
      return world.phase
    end,
    worker = {
      pid = function()
        return 4711
      end,
      exiting = function()
        return world.exiting
      end,
    },
    shared = { llm_gateway = new_dict(world.dict) },
    var = { remote_addr = "192.0.2.7" },
    encode_base64 = function(text)
      return "base64:" .. #text
    end,
    re = {
      find = function(text)
        return utf8_text.is_valid(text) and 1 or nil
      end,
    },
  }
  _G.kong = {
    ctx = { shared = {} },
    router = {
      get_route = function()
        return world.route
      end,
    },
    log = {
      err = say,
      warn = say,
      set_serialize_value = function(key, value)
        world.entry[key] = value
      end,
      serialize = function()
        return world.entry
      end,
    },
    timer = {
      at = function(_, _, callback, ...)
        world.timers[#world.timers + 1] = { callback, ... }
      end,
      named_at = function(_, _, _, callback, ...)
        world.timers[#world.timers + 1] = { callback, ... }
      end,
    },
  }

  package.loaded["ngx.semaphore"] = {
    new = function()
      return new_semaphore(world)
    end,
  }
  for _, name in ipairs({ "admission", "entry_bodies", "log_queue",
                          "queue_keeper", "refused", "sequence" }) do
    package.loaded[PLUGIN .. name] = nil
  end
  world.Queue = assert(loadfile(MODULE))()
  for _, name in ipairs({ "entry_bodies", "log_queue", "queue_keeper",
                          "refused", "sequence" }) do
    world[name] = require(PLUGIN .. name)
  end
  world.sequence.start()

  return setmetatable(world, { __index = M })
end


-- Lets the timers run that were made until now, as nginx would.
function M:run_timers()
  local phase, timers = self.phase, self.timers
  self.phase = "timer"
  self.timers = {}
  for _, timer in ipairs(timers) do
    timer[1](false, unpack(timer, 2))
  end
  self.phase = phase
end


return M
