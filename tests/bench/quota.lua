-- What llm-quota's ledger takes of a worker: processor time a call for check,
-- reservation and settling with three limits, and what counting the calls takes
-- of the one worker that talks to the collector. Run by worker.sh in a worker of
-- nginx, whose shared dicts it uses. Of each the best of seven rounds.

local counts = require "kong.plugins.llm-quota.counts"
local ledgers = require "kong.plugins.llm-quota.ledger"

local USERS = 5000
local CALLS = 50000
local ROUNDS = 7

local cjson = require "cjson.safe"
local dict = ngx.shared.llm_quota
local now = ngx.now()
local day = now - now % 86400

local ledger


local function limit(id, subject, name, unit, per, mode)
  return { id = id, subject = subject, name = name, models = "%", unit = unit,
           per = per, amount = 9007199254740992, mode = mode }
end


local function told(version, more)
  local answer = { version = version, revision = "r", used = {}, counted = {},
                   windows = { hour = { now - now % 3600 }, day = { day } } }
  for name, value in pairs(more) do
    answer[name] = value
  end

  return answer
end


local function apply(answer)
  assert(counts.apply(ledger, answer, counts.ask(ledger, function()
    return true
  end), cjson.encode))
end


local function fill()
  dict:flush_all()
  dict:flush_expired()
  ledger = ledgers.new(dict, {
    worker = function()
      return "4711-1795716662376-ae552340"
    end,
    now = ngx.now,
    decode = cjson.decode,
  })
  apply(told("0", { full = true, limits = {
    limit(1, "each_user", nil, "tokens", "day", "hard"),
    limit(2, "team", "ml", "tokens", "day", "hard"),
    limit(3, "each_user", nil, "calls", "hour", "hard"),
  } }))
end


-- Garbage is collected as it comes: it is a part of what a call takes.
local function measure(run)
  local started = os.clock()
  run()

  return os.clock() - started
end


local function call(i)
  return { user = "user-" .. i % USERS, team = "ml", model = "Qwen3-8B",
           at = math.floor(ngx.now()), calls = 1, prompt = 100,
           completion = 1000 }
end


local best = {}

local function note(name, seconds, count)
  local microseconds = seconds / count * 1e6
  best[name] = math.min(best[name] or microseconds, microseconds)
end


local TAKEN = { calls = 1, prompt = 90, completion = 300, uncached = 90,
                cached = 0 }

for round = 1, ROUNDS do
  fill()
  note("check, reserve and settle", measure(function()
    for i = 1, CALLS do
      local admission = ledger:reserve(call(i))
      admission:settle(i, TAKEN, "Qwen3-8B")
    end
  end), CALLS)
  assert(dict:get("lost") == nil, "there was no room")
  assert(counts.gauges(ledger).pending == CALLS)

  local used = { { 2, "ml", day, CALLS * 390 } }
  for i = 0, USERS - 1 do
    used[#used + 1] = { 1, "user-" .. i, day, CALLS / USERS * 390 }
  end
  note("counting a call, at the worker that asks", measure(function()
    apply(told("1", { used = used, counted = {
      ["4711-1795716662376-ae552340"] = { { 1, CALLS } } } }))
  end), CALLS)
  assert(counts.gauges(ledger).pending == 0)
  assert(dict:get("t:2:" .. day .. ":ml") == CALLS * 390)

  note("a call without a limit", measure(function()
    local limits = require "kong.plugins.llm-quota.limits"
    local index = limits.index({ limits = {}, windows = {}, prices = {} })
    for i = 1, CALLS do
      assert(not limits.concerns(index, "user-" .. i % USERS, "ml"))
    end
  end), CALLS)
end

local kept = 0
fill()
while not dict:get("lost") do
  kept = kept + 1
  ledger:reserve(call(kept)):settle(kept, TAKEN, "Qwen3-8B")
end

for _, name in ipairs({ "check, reserve and settle",
                        "counting a call, at the worker that asks",
                        "a call without a limit" }) do
  ngx.say(string.format("%-42s %6.2f µs", name, best[name]))
end
ngx.say(string.format("%-42s %6d", "calls not counted yet that 16 MiB hold",
                      kept - 1))
