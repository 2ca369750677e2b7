--- The life of a call through nginx's phases, in Kong's order.
--
--   rewrite        notes the start, runs rewrite of the global plugins
--   access         finds the route, runs access of the plugins, sets up the upstream
--   balancer       picks the address and the time-outs of the service
--   header_filter  runs header_filter of the plugins, then adds Kong's headers
--   body_filter    runs body_filter of the plugins for every piece of the body
--   log            runs log of the plugins; always, also when the client is gone
--
-- nginx's own errors (upstream refused, timed out, malformed request) come back
-- through handle_error, which answers in Kong's words and passes through the last
-- three phases again.

local addresses = require "host.addresses"
local balancers = require "host.balancer"
local calls = require "host.call"
local error_body = require "host.error_body"
local ffi = require "ffi"
local plugins = require "host.plugins"
local router = require "host.router"
local settings = require "host.settings"
local snapshot = require "host.snapshot"

local phases = {}


ffi.cdef [[
typedef struct { long seconds; long nanoseconds; } host_time;
int clock_gettime(int clock, host_time *time);
]]

local time = ffi.new("host_time")

local function now_ns()
  ffi.C.clock_gettime(0, time)
  return tonumber(time.seconds) * 1e9 + tonumber(time.nanoseconds)
end


-- --- rewrite and access ------------------------------------------------------------

function phases.rewrite()
  if ngx.var.host_pass == "second" then
    calls.resume()
    return
  end
  local call = calls.begin()
  ngx.ctx.host_phase = "rewrite"
  call.instances = snapshot.get().plugins
  plugins.run("rewrite", call.instances)
end


-- Kong sends a route without buffering to another location, where rewrite and
-- access run again; true when that happened.
local function redirect_for_buffering(route)
  if ngx.var.host_pass ~= "first" then
    return
  end
  if route.request_buffering == false and route.response_buffering == false then
    return ngx.exec("@unbuffered")
  elseif route.request_buffering == false then
    return ngx.exec("@unbuffered_request")
  elseif route.response_buffering == false then
    return ngx.exec("@unbuffered_response")
  end
end


local function forwarded_headers(call)
  local var = ngx.var
  local headers = ngx.req.get_headers()
  local sent_for = headers["X-Forwarded-For"]
  if type(sent_for) == "table" then
    sent_for = table.concat(sent_for, ", ")
  end
  var.upstream_x_forwarded_for = sent_for and (sent_for .. ", " .. var.remote_addr)
                                 or var.remote_addr
  var.upstream_x_forwarded_proto = var.scheme
  var.upstream_x_forwarded_host = var.host
  var.upstream_x_forwarded_port = var.server_port
  var.upstream_x_forwarded_path = (var.request_uri or ""):match("^[^?]*")
  if call.prefix and call.prefix ~= "/" then
    var.upstream_x_forwarded_prefix = call.prefix
  end
  local sent_via = headers["Via"]
  if type(sent_via) == "table" then
    sent_via = sent_via[1]
  end
  local via = "1.1 " .. settings.server_token
  var.upstream_via = sent_via and (sent_via .. ", " .. via) or via
  var.upstream_connection = "keep-alive"
end


-- Kong's name and fields: plugins change them, more than the PDK lets them.
local function prepare_balancer(call)
  local service = call.service
  ngx.ctx.balancer_data = {
    scheme = service.protocol,
    type = service.host:match("^%d+%.%d+%.%d+%.%d+$") and "ipv4" or "name",
    host = service.host,
    port = service.port,
    try_count = 0,
    retries = service.retries,
    connect_timeout = service.connect_timeout,
    send_timeout = service.write_timeout,
    read_timeout = service.read_timeout,
  }
end


-- Sets ip, port and hostname of the next try; or nil, message, status.
local function find_peer(call, data)
  if data.type ~= "name" then
    data.ip, data.hostname = data.host, data.host
    return true
  end
  local item = data.item or data.try_count == 0 and snapshot.get().upstreams[data.host]
  if not item then
    data.ip, data.hostname = addresses.resolve(data.host), data.host
    if not data.ip then
      return nil, "name resolution failed", 503
    end
    return true
  end
  if not data.item then
    data.item, data.hash = item, balancers.hash(item.upstream, call)
  end
  local peer, handle = balancers.pick(item, data.handle, data.hash)
  if not peer then
    return nil, "failure to get a peer from the ring-balancer", 503
  end
  data.handle = handle
  data.ip, data.port = peer.ip, peer.port
  data.hostname = item.upstream.host_header or peer.host
  return true
end


local DEFAULT_PORTS = { http = 80, https = 443 }

local function set_host_header(data)
  if data.preserve_host then
    return
  end
  local host = data.hostname
  if data.port ~= DEFAULT_PORTS[data.scheme] then
    host = host .. ":" .. data.port
  end
  if host ~= ngx.var.upstream_host then
    ngx.var.upstream_host = host
    return true
  end
end


local function find_upstream(call)
  local data = ngx.ctx.balancer_data
  local var = ngx.var
  if var.upstream_host == "" and call.route.preserve_host then
    var.upstream_host = var.http_host
  end
  data.preserve_host = var.upstream_host ~= ""
  local ok, err, status = find_peer(call, data)
  if not ok then
    return nil, err, status
  end
  set_host_header(data)
  return true
end


-- Hop-by-hop headers stay here (RFC 9110, section 7.6.1).
local function clear_hop_by_hop_headers()
  local connection = ngx.var.http_connection
  for name in (connection or ""):gmatch("[^,%s]+") do
    local lower = name:lower()
    if lower ~= "keep-alive" and lower ~= "close" and lower ~= "upgrade" then
      ngx.req.clear_header(name)
    end
  end
  ngx.req.clear_header("Proxy")
  ngx.req.clear_header("Proxy-Connection")
end


local function answer_delayed(call)
  local answer = call.delayed
  call.response_latency_ms = calls.updated_now_ms() - call.started_ms
  call.delayed = nil
  if answer.message then
    return kong.response.error(answer.status, answer.message)
  end
  return kong.response.send(answer)
end


function phases.access()
  local call = ngx.ctx.host
  ngx.ctx.host_phase = "access"
  local now = snapshot.get()
  call.instances = now.plugins

  local match = router.match(now.router, ngx.req.get_method(), ngx.var.host,
                             ngx.var.request_uri)
  if not match then
    return kong.response.error(404, "no Route matched with those values")
  end
  call.route, call.service, call.prefix = match.route, match.service, match.prefix
  call.tries = {}
  ngx.var.upstream_uri = match.upstream_uri
  ngx.var.upstream_scheme = match.service and match.service.protocol or "http"
  forwarded_headers(call)
  if call.service then
    redirect_for_buffering(call.route)
    prepare_balancer(call)
  end

  plugins.collect_and_run_access(now.plugins)
  if call.delayed then
    return answer_delayed(call)
  end

  if not call.service then
    return kong.response.error(503, "no Service found with those values")
  end
  if ngx.var.is_args == "?" or (ngx.var.request_uri or ""):sub(-1) == "?" then
    ngx.var.upstream_uri = ngx.var.upstream_uri .. "?" .. (ngx.var.args or "")
  end
  local found, err, status = find_upstream(call)
  if not found then
    return kong.response.error(status, err)
  end
  clear_hop_by_hop_headers()
  call.access_ended_ms = calls.updated_now_ms()
  call.proxied = true
end


-- --- balancer ------------------------------------------------------------------------

local function note_failure(call, data)
  local previous = call.tries[#call.tries]
  local state, code = require("ngx.balancer").get_last_failure()
  previous.state, previous.code = state, code
  if data.handle and data.handle.peer then
    if state == "failed" then
      balancers.report_failure(data.handle, code)
    else
      balancers.report_status(data.handle, code)
    end
  end
end


-- The peer of another try; the status that ends the call when there is none.
local function next_peer(call, data)
  note_failure(call, data)
  local ok, _, status = find_peer(call, data)
  if not ok then
    return nil, status
  end
  if set_host_header(data) then
    require("ngx.balancer").recreate_request()
  end
  return true
end


function phases.balancer()
  local balancer = require "ngx.balancer"
  local ctx = ngx.ctx
  local call = ctx.host
  ctx.host_phase = "balancer"
  local data = ctx.balancer_data

  local try = { balancer_start = calls.now_ms(), balancer_start_ns = now_ns() }
  data.try_count = data.try_count + 1
  if data.try_count > 1 then
    local ok, status = next_peer(call, data)
    if not ok then
      return ngx.exit(status)
    end
  elseif data.retries > 0 then
    balancer.set_more_tries(data.retries)
  end
  try.ip, try.port = data.ip, data.port
  call.tries[#call.tries + 1] = try

  assert(balancer.set_timeouts(data.connect_timeout / 1000, data.send_timeout / 1000,
                               data.read_timeout / 1000))
  local ok, err = balancer.set_current_peer(try.ip, try.port)
  if not ok then
    ngx.log(ngx.ERR, "failed to set the current peer (address: ", try.ip, " port: ", try.port,
            "): ", err)
    return ngx.exit(500)
  end

  call.balancer_ended_ms = calls.updated_now_ms()
  try.balancer_latency = call.balancer_ended_ms - try.balancer_start
  try.balancer_latency_ns = now_ns() - try.balancer_start_ns
  call.proxy_latency_ms = call.balancer_ended_ms - call.started_ms
end


-- --- header_filter and body_filter -----------------------------------------------------

-- nginx tells the code of the last failed try only when it tries again.
local function note_last_failure(call)
  local try = call.tries[#call.tries]
  if ngx.status > 499 and try and #call.tries > ngx.ctx.balancer_data.retries then
    try.state, try.code = "failed", ngx.status
  end
end


local function add_kong_headers(call)
  local header = ngx.header
  if call.proxied then
    header["X-Kong-Upstream-Latency"] = call.waiting_ms
    header["X-Kong-Proxy-Latency"] = call.proxy_latency_ms
    local via = "1.1 " .. settings.server_token
    local upstream_via = ngx.var.upstream_http_via
    header["Via"] = upstream_via and (upstream_via .. ", " .. via) or via
    if not header["Server"] then
      header["Server"] = settings.server_token
    end
  else
    header["X-Kong-Response-Latency"] = call.response_latency_ms
    header["Server"] = settings.server_token
  end
  header["X-Kong-Request-Id"] = ngx.var.kong_request_id
end


local function instances_of(call)
  if not call.instances then
    call.instances = snapshot.get().plugins
  end
  return call.instances
end


function phases.header_filter()
  local call = calls.current()
  call.header_filter_ms = call.header_filter_ms or calls.now_ms()
  if call.proxied then
    call.waiting_ms = call.waiting_ms
                      or call.header_filter_ms - (call.balancer_ended_ms or call.access_ended_ms)
    call.proxy_latency_ms = call.proxy_latency_ms or call.header_filter_ms - call.started_ms
    note_last_failure(call)
  else
    call.response_latency_ms = call.response_latency_ms
                               or call.header_filter_ms - call.started_ms
  end
  ngx.ctx.host_phase = "header_filter"
  plugins.run("header_filter", instances_of(call))
  add_kong_headers(call)
end


function phases.body_filter()
  local call = calls.current()
  ngx.ctx.host_phase = "body_filter"
  if call.replaced_body then
    ngx.arg[1], ngx.arg[2] = call.replaced_body, true
  end
  plugins.run("body_filter", instances_of(call))
  if ngx.arg[2] and call.proxied then
    call.receive_ms = calls.updated_now_ms() - call.header_filter_ms
  end
end


-- --- log -----------------------------------------------------------------------------

function phases.log()
  local call = calls.current()
  if call.proxied and not call.waiting_ms then
    call.waiting_ms = calls.now_ms() - (call.balancer_ended_ms or call.access_ended_ms)
  end
  ngx.ctx.host_phase = "log"
  local data = ngx.ctx.balancer_data
  if data and data.handle and data.handle.peer then
    balancers.report_status(data.handle, ngx.status)
    balancers.release(data.handle)
  end
  -- The entry is gone from the table even when a plugin raises below.
  calls.finish()
  plugins.run("log", instances_of(call))
end


-- --- nginx's own errors ----------------------------------------------------------------

function phases.handle_error()
  local call = calls.resume() or calls.current()
  ngx.ctx.host_phase = "error"
  call.unexpected = true
  call.delays_answers, call.delayed, call.replaced_body = nil, nil, nil

  local status = ngx.status
  local message = error_body.message(status)
  if status == 494 then
    -- nginx's own code for headers that are too large; clients get 400.
    status = 400
  end
  local headers = ngx.req.get_headers()
  local content_type = error_body.content_type(headers["Accept"] or headers["Content-Type"]
                                               or "text/plain")
  local body = error_body.render(content_type, message, ngx.var.kong_request_id)
  return kong.response.exit(status, body, { ["Content-Type"] = content_type })
end


return phases
