-- Tells the collector, once a second and from one worker of the node, what no
-- log entry can tell: up to where each worker has counted, which refused calls
-- left no entry, how full the queues are, and who made which stored response.
-- Asks it for makers that are not known here. Never in a request. What other
-- plugins tell and ask is theirs to say (llm_gateway.sync_members).
--
-- `POST /sync` next to the `POST /log` of http-log, with its headers; what is
-- sent stands in docs/contract.md. Every worker gives a sign and publishes its
-- own state in the shared dict `llm_gateway`; the one that holds the lease
-- there sends. Without the dict, or before the first entry, nothing is sent.

local cjson = require "cjson.safe"
local log_queue = require "kong.plugins.llm-audit.log_queue"
local queue_keeper = require "kong.plugins.llm-audit.queue_keeper"
local refused = require "kong.plugins.llm-audit.refused"
local sequence = require "kong.plugins.llm-audit.sequence"
local stored_responses = require "kong.plugins.llm-audit.stored_responses"
local sync_members = require "llm_gateway.sync_members"

local floor = math.floor
local format = string.format
local ipairs = ipairs
local kong = kong
local match = string.match
local max = math.max
local ngx = ngx
local pairs = pairs
local pcall = pcall
local tonumber = tonumber
local tostring = tostring
local type = type

local M = {}

local INTERVAL_SECONDS = 1

-- Longer than a request may take, so that one worker sends at a time; short,
-- so that another takes over soon. The collector answers within 8 s.
local LEASE_SECONDS = 10
local TIMEOUT_MS = 9000

-- Counts of refused calls in one request: some 60 KB. And those of users, and
-- stored responses, of which none takes more than 250 bytes.
local MAX_REFUSED = 500
local MAX_REFUSED_USERS = 200
local MAX_RESPONSES = 300

-- An answer to a node's 5,000 users with some limits each has a megabyte.
local MAX_ANSWER_BYTES = 16777216

-- A state that is older belongs to a worker that is gone.
local STATE_SECONDS = 15

local REPORT_SECONDS = 60

local VERSION = 1

local calls_in_flight = 0
local known_conf
local busy = false
local reported_at


function M.begin_call()
  calls_in_flight = calls_in_flight + 1
end


function M.end_call()
  calls_in_flight = max(0, calls_in_flight - 1)
end


-- http-log's settings, for workers that have not sent an entry yet.
local function share_endpoint(shared)
  local conf = log_queue.sender_conf()
  if not conf or conf == known_conf then
    return
  end

  known_conf = conf
  local url = match(tostring(conf.http_endpoint), "^(https?://.*/)log$")
  if url then
    shared:set("sync:endpoint", cjson.encode({ url = url .. "sync",
                                               headers = conf.headers }))
  end
end


local function publish(shared)
  local state = queue_keeper.state()
  shared:set("state:" .. sequence.worker(),
             format("%d %d %d %d %d %d", state.done, calls_in_flight,
                    state.entries, state.bytes, floor(state.stalled_seconds),
                    state.lost),
             STATE_SECONDS)
end


-- The node's name stays the same when Kong is started again, so that the
-- collector sees which workers are gone; the port tells two Kongs of a host
-- apart.
local function node_name()
  local listener = kong.configuration.proxy_listeners
  listener = type(listener) == "table" and listener[1]

  return kong.node.get_hostname() .. ":" .. (listener and listener.port or 0)
end


local function report(err)
  local now = ngx.now()
  if reported_at and now - reported_at < REPORT_SECONDS
    and now >= reported_at
  then
    return
  end

  reported_at = now
  pcall(kong.log.warn, "could not tell the collector about this node: ",
        tostring(err))
end


-- cjson makes {} of an empty list, so a list is left out instead.
local function list(items)
  return items[1] ~= nil and items or nil
end


-- @return the request's body, and what it tells of and asks for
local function make_body(shared)
  local workers, ended = {}, {}
  local gauges = { in_flight = 0, queue_entries = 0, queue_bytes = 0,
                   queue_stalled_seconds = 0, entries_left_out = 0 }

  sequence.each_worker(function(slot, name, given, has_ended)
    local state = not has_ended and shared:get("state:" .. name) or ""
    local done, in_flight, entries, bytes, stalled, lost =
      match(state, "^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$")

    workers[#workers + 1] = { worker = name, seq = given, ended = has_ended,
                              done = has_ended and given or tonumber(done)
                                     or 0 }
    if has_ended then
      ended[slot] = name
    end
    if done then
      gauges.in_flight = gauges.in_flight + tonumber(in_flight)
      gauges.queue_entries = gauges.queue_entries + tonumber(entries)
      gauges.queue_bytes = gauges.queue_bytes + tonumber(bytes)
      gauges.queue_stalled_seconds = max(gauges.queue_stalled_seconds,
                                         tonumber(stalled))
      gauges.entries_left_out = gauges.entries_left_out + tonumber(lost)
    end
  end)

  local taken = {
    refused = refused.take(MAX_REFUSED),
    users = refused.take_users(MAX_REFUSED_USERS),
    news = stored_responses.owners:take_news(MAX_RESPONSES),
    asked = stored_responses.owners:take_asked(),
  }
  local refused_calls = {}
  for i, count in ipairs(taken.refused) do
    refused_calls[i] = { client_ip = count.client_ip, minute = count.minute,
                         status = count.status, count = count.count }
  end
  local refused_users = {}
  for i, count in ipairs(taken.users) do
    refused_users[i] = { user = count.user, refused_by = count.refused_by,
                         minute = count.minute, status = count.status,
                         count = count.count }
  end

  local told = { v = VERSION, node = node_name(), workers = list(workers),
                 refused_calls = list(refused_calls),
                 refused_users = list(refused_users),
                 responses_made = list(taken.news),
                 responses_asked = list(taken.asked), gauges = gauges }
  for name, member in pairs(sync_members.all()) do
    local ok, value = pcall(member.ask, sequence.is_running)
    if ok then
      told[name] = value
      member.note_gauges(gauges)
    else
      report(value)
    end
  end
  taken.told = told

  return cjson.encode(told), ended, taken
end


-- @return the answer; nil and an error
local function post(endpoint, body)
  local http = require "resty.http"
  local headers = { ["Content-Type"] = "application/json" }
  for name, value in pairs(endpoint.headers or {}) do
    headers[name] = headers[name] or value
  end

  local client = http.new()
  client:set_timeout(TIMEOUT_MS)
  local answer, err = client:request_uri(endpoint.url, {
    method = "POST",
    headers = headers,
    body = body,
    keepalive_timeout = 60000,
    -- as http-log does
    ssl_verify = false,
  })
  if not answer then
    return nil, err
  end

  if answer.status >= 300 then
    return nil, "status " .. answer.status
  end

  local text = answer.body or ""
  if #text > MAX_ANSWER_BYTES then
    return nil, "its answer has " .. #text .. " bytes"
  end
  local told = cjson.decode(text)

  return type(told) == "table" and told or {}
end


-- @param made what the collector knows of the responses asked for
local function learn(asked, made)
  local known = {}
  for _, response in ipairs(type(made) == "table" and made or {}) do
    if type(response) == "table" and type(response.id) == "string"
      and type(response.maker) == "string"
    then
      known[#known + 1] = response
    end
  end

  stored_responses.owners:learn(asked, known)
end


-- @param told the request
local function learn_members(answer, told)
  for name, member in pairs(sync_members.all()) do
    if told[name] ~= nil and answer[name] ~= nil then
      local called, ok, err = pcall(member.learn, answer[name], told[name])
      if not called or not ok then
        report(name .. ": " .. tostring(called and err or ok))
      end
    end
  end
end


local function send(shared)
  local endpoint = cjson.decode(shared:get("sync:endpoint") or "")
  if not endpoint then
    return
  end

  local me = sequence.worker()
  if not shared:add("sync:lease", me, LEASE_SECONDS) then
    if shared:get("sync:lease") ~= me then
      return
    end
    shared:set("sync:lease", me, LEASE_SECONDS)
  end

  local body, ended, taken = make_body(shared)
  local called, answer, err = pcall(post, endpoint, body)
  if not called or not answer then
    refused.give_back(taken.refused)
    refused.give_back(taken.users)
    stored_responses.owners:give_back(taken.news, taken.asked)
    report(not called and answer or err)
    return
  end

  refused.forget(taken.refused)
  refused.forget(taken.users)
  learn(taken.asked, answer.responses)
  learn_members(answer, taken.told)
  for slot, name in pairs(ended) do
    sequence.forget(slot, name)
  end
end


local function tick(premature)
  local shared = ngx.shared.llm_gateway
  sequence.give_sign()
  if premature then
    return
  end

  queue_keeper.check()
  share_endpoint(shared)
  publish(shared)
  if not busy then
    busy = true
    local ok, err = pcall(send, shared)
    busy = false
    if not ok then
      report(err)
    end
  end
end


-- Begins, in init_worker. Without the dict queues are still looked after.
function M.start()
  if ngx.shared and ngx.shared.llm_gateway then
    kong.timer:every(INTERVAL_SECONDS, tick)
    return
  end

  kong.log.warn("there is no lua_shared_dict llm_gateway: lost entries of a ",
                "killed worker stay unseen, and calls without a key are not ",
                "limited (KONG_NGINX_HTTP_LUA_SHARED_DICT=llm_gateway 16m)")
  kong.timer:every(INTERVAL_SECONDS, function(premature)
    if not premature then
      queue_keeper.check()
    end
  end)
end


return M
