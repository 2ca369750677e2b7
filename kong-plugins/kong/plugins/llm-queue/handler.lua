-- Lets a call wait until its model server has a place for it, and gives the
-- next free place to the call that comes first in the order of turns.lua.
--
-- A user who holds a full share of the places, or has many calls waiting, must
-- leave a few places free, so that calls of lighter users need not wait: as
-- many as these users have held at a time (places.lua). A user who is alone may
-- take all.
--
-- Invariants
--   No more calls of this node are under way than the upstream has places here.
--   A place is given back when its call ends, however it ends: nginx runs the
--   log phase for calls that were aborted, too. Those of a worker that dies are
--   given back by another one.
--   A call that waits does nothing: a semaphore wakes it. While calls wait, one
--   timer of their worker looks two hundred times a second whether a place has
--   come free in another one.
--   An error in here lets the call go on, and is logged.
--   Where the plugin is not configured nothing of it runs.
--
-- A client that hangs up while it waits is noticed when its turn comes: nginx
-- finds the connection closed, and the place is free again at once. Kong has
-- lua_check_client_abort off, and with it on nginx 1.22 and its Lua module
-- 0.10.23 crash where a plugin waits (a coroutine that waits is freed twice).
--
-- Not here: other nodes. Each has its part of the places.

local apis = require "llm_gateway.api"
local early_reading = require "llm_gateway.early_reading"
local gauges = require "kong.plugins.llm-queue.gauges"
local guard = require "llm_gateway.guard"
local limits = require "kong.plugins.llm-quota.limits"
local places_of = require "kong.plugins.llm-queue.places"
local reading = require "llm_gateway.reading"
local refusals = require "llm_gateway.refusal"
local semaphores = require "ngx.semaphore"
local sync_members = require "llm_gateway.sync_members"
local turns = require("kong.plugins.llm-queue.turns").new()
local weights = require "kong.plugins.llm-queue.weights"
local words = require "kong.plugins.llm-queue.words"

local floor = math.floor
local ipairs = ipairs
local kong = kong
local max = math.max
local min = math.min
local ngx = ngx
local pairs = pairs
local require = require
local type = type

-- Behind llm-quota (905): who is over a limit does not wait.
local PRIORITY = 902

-- Between two looks for places that came free in another worker.
local TICK_SECONDS = 0.005

-- Of so many looks one is at who is due first, though no place is free: other
-- workers are told.
local TICKS_TO_NAME = 10

-- A call that waits looks by itself so seldom whether its worker's timer still
-- runs, and does its work if not.
local LOOK_SECONDS = 1
local LOOK_SECONDS_AT_THE_END = 0.2

local LIFE_SECONDS = 1

-- What a server answers without its model.
local NEEDS_NO_PLACE = { tokenize = true, detokenize = true,
                         count_tokens = true }

-- Where no model is configured there is one upstream.
local ONLY_UPSTREAM = "default"

local LlmQueue = {
  PRIORITY = PRIORITY,
  VERSION = "0.2.0",
}

local guarded = guard.new(function(line)
  kong.log.err(line)
end, ngx.now)

-- This worker's, once the plugin is configured; nil without the shared dict.
local places
local is_started = false

-- Places that calls of this worker hold.
local held_here = 0


-- --- whose turn it is -------------------------------------------------------

local function held_by(upstream, user)
  return places:held_by(upstream, user)
end


-- Whether the reserve is for such a call.
local function is_other(call)
  return call.class == "interactive"
         and not places:is_greedy(call.upstream, call.user, call.weight,
                                  call.most)
end


local function free_for(call)
  return call.most - places:state(call.upstream)
end


-- Whether a call may be given a place as soon as one is free.
local function may(call)
  return is_other(call)
         or max(free_for(call), 1)
            > places:reserve(call.upstream,
                             call.class == "interactive" and call.user or nil,
                             call.most, call.others_wait)
end


local function serve(call, place)
  call.place = place
  held_here = held_here + 1
end


-- Gives places that are free to calls of this worker that are due.
local function give(upstream)
  while true do
    local call, rank = turns:first(upstream, held_by, may)
    places:name(upstream, rank)
    if not call or free_for(call) <= 0 or places:is_passed(upstream, rank) then
      return
    end

    local place = places:hold(upstream, call.user, call.most, is_other(call))
    if not place then
      return
    end

    turns:leave(call)
    places:unwait(call.waiting)
    serve(call, place)
    call.semaphore:post(1)
  end
end

local give_safely = guarded("give", give)


local is_ticking = false

local function tick()
  local count = 0
  while turns.count > 0 do
    ngx.sleep(TICK_SECONDS)
    count = count + 1
    local upstreams = {}
    for upstream, most in pairs(turns.most) do
      if count % TICKS_TO_NAME == 0 or places:state(upstream) < most then
        upstreams[#upstreams + 1] = upstream
      end
    end
    for _, upstream in ipairs(upstreams) do
      give_safely(upstream)
    end
  end
end

local tick_safely = guarded("tick", tick)


local function start_ticking()
  if not is_ticking then
    -- A worker that ends may refuse; then calls look by themselves.
    is_ticking = ngx.timer.at(0, function(is_premature)
      if not is_premature then
        tick_safely()
      end
      is_ticking = false
    end) and true or false
  end
end


-- --- starting ---------------------------------------------------------------

local look_after = guarded("look_after", function()
  places:live()
  places:bury()
end)


-- One timer that stays: a worker that ends, and whose calls go on, gets no new
-- ones.
local function live(is_premature)
  while not is_premature
    and (not ngx.worker.exiting() or held_here > 0 or turns.count > 0)
  do
    look_after()
    ngx.sleep(LIFE_SECONDS)
  end
end


local function values()
  local dict, found = ngx.shared.llm_queue, {}
  for _, key in ipairs(dict:get_keys(0)) do
    local value = dict:get(key)
    if type(value) == "number" then
      found[key] = value
    end
  end

  return found
end


local MEMBER = {
  ask = function()
    return gauges.of(values())
  end,
  -- The collector has nothing to tell.
  learn = function()
    return true
  end,
  note_gauges = function()
    return nil
  end,
}


local function start()
  is_started = true
  local dict = ngx.shared.llm_queue
  if not dict then
    kong.log.err("there is no lua_shared_dict llm_queue: no call waits "
                 .. "(KONG_NGINX_HTTP_LUA_SHARED_DICT)")
    return
  end

  local worker = require("kong.plugins.llm-audit.sequence").worker()
  places = places_of.new(dict, worker, ngx.now)
  places:live()
  ngx.timer.at(0, live)
end


LlmQueue.configure = guarded("configure", function(_, configs)
  local is_wanted = configs ~= nil and configs[1] ~= nil
  if is_wanted and not is_started then
    start()
  end
  sync_members.set("queue", is_wanted and places and MEMBER or nil)
end)


-- --- a call that begins -----------------------------------------------------

local function call_of(conf, asked)
  local consumer = kong.client.get_consumer()
  local user, team = limits.caller(consumer)
  local class = weights.class(kong.client.get_credential())

  return {
    upstream = asked.routed_to and asked.routed_to.name or ONLY_UPSTREAM,
    model = asked.routed_to and asked.routed_to.name,
    user = user,
    class = asked.waits_behind and "behind" or class,
    weight = weights.weight(consumer, user, team, conf.weights),
    most = max(floor(conf.in_flight / conf.nodes), 1),
    others_wait = conf.others_wait_percent / 100,
    since = ngx.now(),
  }
end


-- @return the error
local function refused(conf, call, why, number)
  local _, waiting = places:state(call.upstream)
  local seconds = places:usual_seconds(call.upstream) * waiting / call.most

  return words.error(why, number, call.model, seconds, conf.contact)
end


-- Whole milliseconds: a semaphore that is to wait for less does not wait, and
-- without a wait nginx's clock stands still.
-- @return for how long the call may still wait
local function milliseconds_left(conf, call)
  local now = ngx.now()
  if now < call.since then
    -- The clock was set back.
    call.since = now
  end

  return floor((call.since + conf.max_wait_seconds - now) * 1000 + 0.5)
end


-- @return nil once the call has a place, or how to answer
local function await(conf, call)
  local _, waiting = places:state(call.upstream)
  if waiting >= conf.max_waiting then
    return refused(conf, call, "all", waiting)
  end

  local own = places:waiting_of(call.upstream, call.user)
  if own >= conf.max_waiting_per_user then
    return refused(conf, call, "user", own)
  end

  call.waiting = places:wait(call.upstream, call.user)
  if not call.waiting then
    -- no room to count it
    return nil
  end

  call.semaphore = semaphores.new()
  turns:join(call)
  start_ticking()
  give(call.upstream)
  while not call.place do
    local left = milliseconds_left(conf, call)
    if left <= 0 then
      turns:leave(call)
      places:unwait(call.waiting)
      return refused(conf, call, "late", conf.max_wait_seconds)
    end

    local look = ngx.worker.exiting() and LOOK_SECONDS_AT_THE_END
                 or LOOK_SECONDS
    if not call.semaphore:wait(min(left / 1000, look)) and not is_ticking then
      give_safely(call.upstream)
    end
  end
end


-- @return milliseconds
local function waited(call)
  return floor((ngx.now() - call.since) * 1000 + 0.5)
end


-- While half of the places are free nobody looks who is greedy.
-- @return nil once the call has a place, or how to answer
local function enter(conf, asked, call)
  local held, waiting = places:state(call.upstream)
  local is_quiet = call.class == "interactive" and held * 2 < call.most
  local place
  if waiting == 0 and (is_quiet or held < call.most and may(call)) then
    place = places:hold(call.upstream, call.user, call.most,
                        is_quiet or is_other(call))
  end
  if place then
    serve(call, place)
    return nil
  end

  early_reading.hold(asked, true)
  local err = await(conf, call)
  early_reading.hold(asked, false)
  local milliseconds = waited(call)
  asked.queue_ms = milliseconds > 0 and milliseconds or nil

  return err
end


-- Tokens that are not known yet count as so many, for an answer.
local ANSWER_TOKENS = 256

-- Tells vLLM how soon the call is due. It counts from now on: of many calls at
-- once the later ones come later.
local function prioritise(asked, call)
  local tokens = places:tokens_of(call.user, weights.faded)
  kong.service.request.set_header("X-Vllm-Priority",
                                  weights.priority(call.class, tokens,
                                                   call.weight))
  local size = asked.found and asked.found.text_bytes or asked.request_bytes
  local guess = apis.tokens_of(size or 0) + ANSWER_TOKENS
  places:note_tokens(call.user, guess, weights.faded)
  asked.wants_usage = true
  asked.on_llm = guarded("on_llm", function(llm)
    places:note_tokens(call.user,
                       weights.tokens(llm.usage or llm.estimated) - guess,
                       weights.faded)
  end)
end


local function access(_, conf)
  local asked = reading.of_call()
  if not places or not reading.is_work(asked) or NEEDS_NO_PLACE[asked.api] then
    return nil
  end

  -- Before the wait: a call that is refused has its row, too.
  local unreadable = early_reading.once(asked)
  if unreadable then
    return unreadable
  end

  local call = call_of(conf, asked)
  kong.ctx.plugin.call = call
  local err = enter(conf, asked, call)
  if not err and conf.priority then
    prioritise(asked, call)
  end

  return err
end

local decide = guarded("access", access)

function LlmQueue:access(conf)
  local err = decide(self, conf)
  if err then
    return refusals.send(reading.of_call(), "queue", err)
  end
end


-- --- and ends ---------------------------------------------------------------

local function finish(asked, call)
  if call.line then
    -- Something ended the call while it waited.
    turns:leave(call)
    places:unwait(call.waiting)
    asked.queue_ms = waited(call)
  elseif call.place then
    held_here = held_here - 1
    places:release(call.place)
  end
  give(call.upstream)
end


LlmQueue.log = guarded("log", function()
  local asked, call = reading.of_call(), kong.ctx.plugin.call
  if call then
    finish(asked, call)
  end
  early_reading.log_once(asked)
end)


return LlmQueue
