-- What llm-queue takes of a worker: processor time of a call that finds a
-- place, and of a thousand calls that wait. Run by worker.sh in a worker of nginx,
-- whose shared dict, timers and semaphores it uses. What Kong and llm-audit do
-- for a call anyway is left out. Of each the best of seven rounds.

local queue_stubs = require "spec.helpers.queue_stubs"

local ROUNDS = 7
local CALLS = 20000
local WAITING = 1000
local USERS = 200
local WAIT_SECONDS = 3

local call = {}

local plugin = setmetatable({}, {
  __index = function(_, name)
    return call[name]
  end,
  __newindex = function(_, name, value)
    call[name] = value
  end,
})
_G.kong = {
  client = {
    get_consumer = function()
      return call.consumer
    end,
    get_credential = function()
      return nil
    end,
  },
  ctx = { plugin = plugin },
  log = { err = function(line)
    error(line)
  end },
}

local handler = queue_stubs.handler("worker", {
  of_call = function()
    return call.asked
  end,
  refused = function(_, _, err)
    error(err.message)
  end,
  semaphores = require "ngx.semaphore",
})

local conf = { in_flight = 64, nodes = 1, max_waiting = 10000,
               max_waiting_per_user = 10000, max_wait_seconds = 600,
               others_wait_percent = 5, weights = {} }


local function new_call(number)
  return { asked = { api = "chat" },
           consumer = { username = "user-" .. number % USERS, tags = {} } }
end


local best
for _ = 1, ROUNDS do
  local begun = os.clock()
  for number = 1, CALLS do
    call = new_call(number)
    handler:access(conf)
    handler:log()
  end
  local with = os.clock() - begun

  begun = os.clock()
  for number = 1, CALLS do
    call = new_call(number)
  end
  local seconds = with - (os.clock() - begun)
  best = math.min(best or seconds, seconds)
end
local LINE = "%-46s %6.2f %s"
ngx.say(LINE:format("a call that finds a place", best / CALLS * 1e6, "µs"))

-- A semaphore wakes a thread that finds the call of another one: it only waits.
conf.in_flight = 1
call = new_call(0)
handler:access(conf)
local function idle()
  local begun = os.clock()
  ngx.sleep(WAIT_SECONDS)
  return (os.clock() - begun) / WAIT_SECONDS * 100
end
local before = idle()
for number = 1, WAITING do
  ngx.thread.spawn(function()
    call = new_call(number)
    handler:access(conf)
  end)
end
ngx.say(LINE:format(WAITING .. " calls that wait, of " .. USERS .. " users",
                    idle() - before, "% of a core"))
ngx.exit(200)
