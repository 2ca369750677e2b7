--- kong.service and kong.service.request: where a call goes, and what goes there.

local phase = require "host.phase"
local headers = require "host.pdk.headers"
local snapshot = require "host.snapshot"
local uri = require "host.uri"

local check = phase.check
local ACCESS = phase.set("rewrite", "access")
local ACCESS_AND_BALANCER = phase.set("rewrite", "access", "balancer")
local ACCESS_ONLY = phase.set("access")


local request = {}


function request.set_header(name, value)
  check(ACCESS_AND_BALANCER)
  headers.validate(name, value)
  if name:lower() == "host" then
    ngx.var.upstream_host = value
  end
  ngx.req.set_header(name, headers.normalize(value))
end


function request.add_header(name, value)
  check(ACCESS)
  headers.validate(name, value)
  local values = ngx.req.get_headers()[name]
  if type(values) ~= "table" then
    values = { values }
  end
  values[#values + 1] = headers.normalize(value)
  ngx.req.set_header(name, values)
end


function request.set_headers(map)
  check(ACCESS)
  headers.validate_all(map)
  for name, value in pairs(map) do
    if name:lower() == "host" then
      ngx.var.upstream_host = value
    end
    ngx.req.set_header(name, headers.normalize(value))
  end
end


function request.clear_header(name)
  check(ACCESS)
  if type(name) ~= "string" then
    error("header must be a string", 2)
  end
  ngx.req.clear_header(name)
end


function request.set_path(path)
  check(ACCESS_AND_BALANCER)
  if type(path) ~= "string" then
    error("path must be a string", 2)
  elseif path:sub(1, 1) ~= "/" then
    error("path must start with /", 2)
  end
  ngx.var.upstream_uri = uri.escape(path)
end


function request.set_raw_query(query)
  check(ACCESS)
  if type(query) ~= "string" then
    error("query must be a string", 2)
  end
  ngx.req.set_uri_args(query)
end


--- Removes `name` from the query string and leaves the rest as it stands.
function request.clear_query_arg(name)
  check(ACCESS)
  if type(name) ~= "string" then
    error("query argument name must be a string", 2)
  end
  local args = ngx.var.args
  if not args or args == "" then
    return
  end
  local left = {}
  for pair in args:gmatch("[^&]+") do
    if ngx.unescape_uri(pair:match("^[^=]*")) ~= name then
      left[#left + 1] = pair
    end
  end
  ngx.var.args = table.concat(left, "&")
end


function request.set_raw_body(body)
  check(ACCESS_AND_BALANCER)
  if type(body) ~= "string" then
    error("body must be a string", 2)
  end
  ngx.req.read_body()
  ngx.req.set_body_data(body)
end


local service = { request = request }


--- As in Kong, only the name changes: where the service has an address, Kong goes
--- on to take the name for one.
function service.set_upstream(host)
  check(ACCESS_ONLY)
  if type(host) ~= "string" then
    error("host must be a string", 2)
  end
  if not snapshot.get().upstreams[host] then
    return nil, "could not find an Upstream named '" .. host .. "'"
  end
  ngx.ctx.balancer_data.host = host
  return true
end


function service.set_target(host, port)
  check(ACCESS_AND_BALANCER)
  if type(host) ~= "string" then
    error("host must be a string", 2)
  elseif type(port) ~= "number" or port % 1 ~= 0 then
    error("port must be an integer", 2)
  elseif port < 0 or port > 65535 then
    error("port must be an integer between 0 and 65535: given " .. port, 2)
  end
  ngx.var.upstream_host = host
  ngx.ctx.balancer_data.host = host
  ngx.ctx.balancer_data.port = port
end


return service
