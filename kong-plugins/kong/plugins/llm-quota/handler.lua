-- Lets a call in as long as its limits have room for it, and tells callers how
-- much is left. Limits and what is used of them come from the collector, once
-- a second; see ledger.lua for how a node counts in between.
--
-- Invariants
--   No call waits for the collector: what is known stands in shared memory.
--   A call reserves in `access` and is settled when its log entry gets its
--   number (`asked.limited`, which llm-audit's log_queue calls), or released:
--   what leaves no entry is charged nothing.
--   An error in here lets the call go on, unlimited, and is logged.
--   Where the plugin is not configured nothing of it runs.
--
-- Not here: what the server reported (llm-audit reads it), sending and asking
-- (llm-audit's sync.lua), windows and time zones (the collector).

local apis = require "llm_gateway.api"
local cjson = require "cjson.safe"
local counts = require "kong.plugins.llm-quota.counts"
local early_reading = require "llm_gateway.early_reading"
local estimate = require "kong.plugins.llm-quota.estimate"
local guard = require "llm_gateway.guard"
local ledgers = require "kong.plugins.llm-quota.ledger"
local limits = require "kong.plugins.llm-quota.limits"
local prompts = require "kong.plugins.llm-quota.prompts"
local reading = require "llm_gateway.reading"
local refusals = require "llm_gateway.refusal"
local request_body = require "llm_gateway.request_body"
local sync_members = require "llm_gateway.sync_members"
local words = require "kong.plugins.llm-quota.words"

local floor = math.floor
local kong = kong
local max = math.max
local ngx = ngx
local pairs = pairs
local require = require

-- Behind rate-limiting (910), in front of what lets calls wait.
local PRIORITY = 905

-- Without an answer for so long it is not known any more what other nodes use.
local STALE_SECONDS = 60

local SWEEP_SECONDS = 1

-- Between two lines of the log about the same.
local SAY_SECONDS = 60

local LlmQuota = {
  PRIORITY = PRIORITY,
  VERSION = "0.2.0",
}

local guarded = guard.new(function(line)
  kong.log.err(line)
end, ngx.now)

-- This worker's, once the plugin is configured; nil without the shared dict.
local ledger
local is_started = false

-- Calls that have ended and of which the entry may still get its number.
local ended, ended_count = {}, 0


-- --- starting ---------------------------------------------------------------

-- Ends what no entry came of: log phases run to their end without a pause, so
-- at any later time it is known.
local function sweep()
  for i = 1, ended_count do
    ended[i]:release()
    ended[i] = nil
  end
  ended_count = 0
end


-- What found no room in the dict and was said, and when.
local lost_said, lost_said_at = 0, 0

local function say_lost(lost)
  local now = ngx.now()
  if lost > lost_said and now - lost_said_at >= SAY_SECONDS then
    kong.log.err(lost - lost_said, " amounts found no room in the shared dict ",
                 "llm_quota: they are missing until the collector has counted ",
                 "the calls; make it larger (KONG_NGINX_HTTP_LUA_SHARED_DICT)")
    lost_said, lost_said_at = lost, now
  end
end


local function learn(told, asked)
  local ok, err = counts.apply(ledger, told, asked, cjson.encode)
  local left_out = ok and told.full and counts.gauges(ledger).left_out or 0
  if left_out > 0 then
    kong.log.err(left_out, " limits or prices of the collector are none that ",
                 "this version knows: they hold nobody back")
  end

  return ok, err
end


local MEMBER = {
  ask = function(is_running)
    return counts.ask(ledger, is_running)
  end,
  learn = learn,
  note_gauges = function(gauges)
    local own = counts.gauges(ledger)
    for name, value in pairs(own) do
      gauges["quota_" .. name] = value
    end
    say_lost(own.lost)
  end,
}


local function start()
  is_started = true
  local dict = ngx.shared.llm_quota
  if not dict then
    kong.log.err("there is no lua_shared_dict llm_quota: no limit is known "
                 .. "(KONG_NGINX_HTTP_LUA_SHARED_DICT)")
    return
  end

  ledger = ledgers.new(dict, {
    worker = require("kong.plugins.llm-audit.sequence").worker,
    now = ngx.now,
    decode = cjson.decode,
  })
  kong.timer:every(SWEEP_SECONDS, function()
    sweep()
  end)
end


LlmQuota.configure = guarded("configure", function(_, configs)
  local is_wanted = configs ~= nil and configs[1] ~= nil
  if is_wanted and not is_started then
    start()
  end
  sync_members.set("quota", is_wanted and ledger and MEMBER or nil)
end)


-- --- a call that begins -----------------------------------------------------

local function count_prompts(asked)
  local members = asked.found and asked.found.members
  if asked.api ~= "completions" or not members then
    return 1
  end

  local count = prompts.count(asked.body, members.prompt, reading.await_turn)
                + prompts.count(asked.body, members.prompt_embeds,
                                reading.await_turn)
  reading.rest(asked)

  return max(count, 1)
end


-- @return the name by which the server will report the model, as far as known
local function model_of(asked)
  local model = asked.routed_to

  return model and model.served_as or asked.found and asked.found.model_asked
end


-- The call's entry has its number.
local function charge(admission, number, llm, hides_usage)
  local taken = estimate.of_entry(llm, admission.was_forwarded, hides_usage,
                                  admission.call)
  admission:settle(number, taken, llm.model)
end


local function reserve(conf, asked, user, team)
  local size = asked.request_bytes or request_body.declared_size() or 0
  local prompt, completion = estimate.of_request(asked.api, asked.found, size,
                                                 count_prompts(asked),
                                                 conf.default_max_tokens)
  local call = {
    user = user,
    team = team,
    model = model_of(asked),
    at = floor(kong.request.get_start_time() / 1000),
    calls = 1,
    prompt = prompt,
    completion = completion,
    can_wait = sync_members.all().queue ~= nil,
  }
  local admission, refusal, places, used = ledger:reserve(call)
  local own = kong.ctx.plugin
  own.places, own.used = places, used
  if refusal then
    return words.error(refusal, floor(ngx.now()), conf.contact)
  end

  -- For llm-queue, which is next.
  asked.waits_behind = admission.is_over
  if places[1] then
    own.admission = admission
    admission.on_number = charge
    asked.limited = admission
    asked.wants_usage = true
  end
end


-- @return nil, or how to answer instead of the server
local function access(_, conf)
  local asked = reading.of_call()
  if not reading.is_work(asked) then
    return nil
  end

  local index = ledger and ledger:limits()
  if conf.fail_closed
    and (not index or (counts.age(ledger) or STALE_SECONDS) >= STALE_SECONDS)
  then
    return words.unknown()
  end
  if not index then
    return nil
  end

  local user, team = limits.caller(kong.client.get_consumer())
  if not limits.concerns(index, user, team) then
    return nil
  end

  return early_reading.once(asked) or reserve(conf, asked, user, team)
end

local decide = guarded("access", access)

function LlmQuota:access(conf)
  local err = decide(self, conf)
  if err then
    return refusals.send(reading.of_call(), "quota", err)
  end
end


-- --- its answer -------------------------------------------------------------

local function set_header(name, value)
  ngx.header[name] = value
end


LlmQuota.header_filter = guarded("header_filter", function()
  local own = kong.ctx.plugin
  if own.places and own.places[1] then
    words.set_headers(own.places, own.used,
                      apis.is_anthropic(reading.of_call().api),
                      floor(ngx.now()), set_header)
  end
end)


LlmQuota.log = guarded("log", function()
  if ended_count > 0 then
    sweep()
  end

  local own = kong.ctx.plugin
  local admission = own.admission
  if admission then
    local server = ngx.var.upstream_addr
    admission.was_forwarded = server ~= nil and server ~= ""
    ended_count = ended_count + 1
    ended[ended_count] = admission
  end
  early_reading.log_once(reading.of_call())
end)


return LlmQuota
