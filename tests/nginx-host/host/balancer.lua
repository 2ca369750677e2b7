--- Picks the server of an upstream, and keeps who is healthy, as Kong's balancer
--- and its health checks do.
--
-- Algorithms: round-robin, least-connections, consistent-hashing by consumer or
-- address. Health is known to all workers at once (Kong tells them by events, a
-- moment later); counts of connections are each worker's own. Probes speak plain
-- HTTP. A target's name is looked up once, when the settings change.

local addresses = require "host.addresses"
local http = require "host.http"
local settings = require "host.settings"

local balancer = {}

local LOOK_SECONDS = 0.25

local shared = ngx.shared.host_state
-- "ip:port" → calls under way, of this worker
local connections = {}
local turns = {}


-- --- what there is -------------------------------------------------------------------

--- name → { upstream, peers } for this state of the document.
function balancer.build(document)
  local by_name, by_id = {}, {}
  for id, upstream in pairs(document.upstreams) do
    local item = { upstream = upstream, peers = {} }
    by_name[upstream.name], by_id[id] = item, item
  end
  for _, target in pairs(document.targets) do
    local item = by_id[target.upstream.id]
    local host, port = target.target:match("^(.+):(%d+)$")
    if item and target.weight > 0 then
      item.peers[#item.peers + 1] = {
        id = target.upstream.id .. "/" .. target.target,
        host = host,
        ip = addresses.resolve(host),
        port = tonumber(port),
        weight = target.weight,
      }
    end
  end
  for _, item in pairs(by_name) do
    table.sort(item.peers, function(a, b)
      return a.id < b.id
    end)
  end
  return by_name
end


-- --- health --------------------------------------------------------------------------

local FAILURES = { tcp_failures = true, timeouts = true, http_failures = true }


local function is_healthy(peer)
  return peer.ip and not shared:get("unhealthy:" .. peer.id)
end


-- Counts what was seen of a peer; enough of it in a row changes its state.
local function note(checks, peer, kind)
  local rules = kind == "successes" and checks.healthy or checks.unhealthy
  local limit = rules[kind]
  if not limit or limit == 0 then
    return
  end
  local prefix = "seen:" .. peer.id .. ":"
  if kind == "successes" then
    for failure in pairs(FAILURES) do
      shared:delete(prefix .. failure)
    end
  else
    shared:delete(prefix .. "successes")
  end
  if shared:incr(prefix .. kind, 1, 0) >= limit then
    if kind == "successes" then
      shared:delete("unhealthy:" .. peer.id)
    else
      shared:set("unhealthy:" .. peer.id, true)
    end
  end
end


local function has(list, value)
  for _, item in ipairs(list) do
    if item == value then
      return true
    end
  end
end


local function note_status(checks, peer, status)
  if has(checks.healthy.http_statuses, status) then
    note(checks, peer, "successes")
  elseif has(checks.unhealthy.http_statuses, status) then
    note(checks, peer, "http_failures")
  end
end


--- What a call showed of the server that it used.
function balancer.report_failure(handle, code)
  note(handle.item.upstream.healthchecks.passive, handle.peer,
       code == 504 and "timeouts" or "tcp_failures")
end

function balancer.report_status(handle, status)
  local checks = handle.item.upstream.healthchecks.passive
  if status == 504 then
    note(checks, handle.peer, "timeouts")
  else
    note_status(checks, handle.peer, status)
  end
end


local function probe(item, peer)
  local checks = item.upstream.healthchecks.active
  local timeout = checks.timeout * 1000
  local answer, err = http.request({
    method = "GET", body = {}, headers = checks.headers or {}, timeout = timeout, keepalive = 1,
    url = ("http://%s:%d%s"):format(peer.ip, peer.port, checks.http_path),
  })
  if answer then
    note_status(checks, peer, answer.status)
  else
    note(checks, peer, err == "timeout" and "timeouts" or "tcp_failures")
  end
end


-- One worker of all probes what is due.
local function look(get)
  for _, item in pairs(get().upstreams) do
    local checks = item.upstream.healthchecks.active
    for _, peer in ipairs(item.peers) do
      local rules = is_healthy(peer) and checks.healthy or checks.unhealthy
      if peer.ip and rules.interval > 0
         and shared:add("probed:" .. peer.id, true, rules.interval) then
        ngx.thread.spawn(probe, item, peer)
      end
    end
  end
end


function balancer.start(get)
  if ngx.worker.id() == 0 then
    assert(ngx.timer.every(LOOK_SECONDS, function(premature)
      if not premature then
        look(get)
      end
    end))
  end
end


--- What the Admin API says of an upstream's targets: target → word.
function balancer.health(item)
  local active = item.upstream.healthchecks.active
  local is_on = active.healthy.interval > 0 or active.unhealthy.interval > 0
  for _, kind in ipairs({ "tcp_failures", "timeouts", "http_failures" }) do
    is_on = is_on or item.upstream.healthchecks.passive.unhealthy[kind] > 0
  end
  local words = {}
  for _, peer in ipairs(item.peers) do
    words[peer.host .. ":" .. peer.port] = not is_on and "HEALTHCHECKS_OFF"
                                           or not peer.ip and "DNS_ERROR"
                                           or is_healthy(peer) and "HEALTHY" or "UNHEALTHY"
  end
  return words
end


-- --- picking -------------------------------------------------------------------------

local function key_of(peer)
  return peer.ip .. ":" .. peer.port
end


local function by_connections(peers, handle)
  local best
  for _, peer in ipairs(peers) do
    local load = ((connections[key_of(peer)] or 0) + 1) / peer.weight
    if not handle.failed[peer.id] and (not best or load < best.load) then
      best = { peer = peer, load = load }
    end
  end
  if not best then
    -- All have failed: those that did are asked again.
    handle.failed = {}
    return peers[1]
  end
  return best.peer
end


local function by_hash(peers, handle, hash)
  local order = {}
  for i, peer in ipairs(peers) do
    order[i] = { peer = peer, rank = ngx.crc32_short(hash .. "|" .. peer.id) }
  end
  table.sort(order, function(a, b)
    return a.rank < b.rank
  end)
  return order[handle.tries % #order + 1].peer
end


local function by_turn(peers, id)
  turns[id] = (turns[id] or ngx.worker.id()) + 1
  return peers[turns[id] % #peers + 1]
end


local function release(handle)
  if handle.peer then
    local key = key_of(handle.peer)
    connections[key] = (connections[key] or 1) - 1
    handle.peer = nil
  end
end

balancer.release = release


--- The next peer of a call; nil when none is there. handle: of the try before.
function balancer.pick(item, handle, hash)
  handle = handle or { item = item, tries = 0, failed = {} }
  if handle.peer then
    handle.failed[handle.peer.id] = true
    release(handle)
  end

  local peers = {}
  for _, peer in ipairs(item.peers) do
    if is_healthy(peer) then
      peers[#peers + 1] = peer
    end
  end
  if #peers == 0 then
    return nil
  end

  local upstream = item.upstream
  local peer
  if upstream.algorithm == "least-connections" then
    peer = by_connections(peers, handle)
  elseif upstream.algorithm == "consistent-hashing" then
    peer = by_hash(peers, handle, hash or "")
  else
    peer = by_turn(peers, upstream.id)
  end
  handle.tries = handle.tries + 1
  handle.peer = peer
  connections[key_of(peer)] = (connections[key_of(peer)] or 0) + 1
  return peer, handle
end


--- What stands for the caller where an upstream goes by it.
function balancer.hash(upstream, call)
  if upstream.hash_on == "consumer" then
    local of = call.consumer or call.credential
    return of and of.id
           or upstream.hash_fallback == "ip" and ngx.var.remote_addr or nil
  elseif upstream.hash_on == "ip" then
    return ngx.var.remote_addr
  elseif upstream.hash_on ~= "none" then
    error("the test host does not hash on " .. upstream.hash_on
          .. " (" .. settings.version .. " does)")
  end
end


return balancer
