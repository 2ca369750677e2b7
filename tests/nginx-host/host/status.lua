--- The status port: /status, /status/ready and /metrics.

local json = require "host.json"
local settings = require "host.settings"

local status = {}


local FAMILIES = {
  { "kong_bandwidth_bytes", "counter", "Total bandwidth (ingress/egress) throughput in bytes" },
  { "kong_http_requests_total", "counter",
    "HTTP status codes per consumer/service/route in Kong" },
  { "kong_latency_ms", "histogram",
    "Latency added by Kong and enabled plugins for each service/route in Kong" },
  { "kong_request_latency_ms", "histogram",
    "Total latency incurred during requests for each service/route in Kong" },
  { "kong_upstream_latency_ms", "histogram",
    "Latency added by upstream response for each service/route in Kong" },
}


local function family_of(series)
  local name = series:match("^[^{]+")
  return name:gsub("_bucket$", ""):gsub("_count$", ""):gsub("_sum$", "")
end


-- Buckets in the order of their bounds, not of their digits.
local function sort_key(series)
  local before, bound = series:match('^(.-)le="([^"]*)"')
  if not before then
    return series
  end
  return before .. (bound == "+Inf" and "~" or ("%012d"):format(tonumber(bound)))
end


local function metrics_text()
  local shared = ngx.shared.prometheus_metrics
  local by_family = {}
  for _, series in ipairs(shared:get_keys(0)) do
    local family = family_of(series)
    local list = by_family[family] or {}
    list[#list + 1] = series
    by_family[family] = list
  end

  local out = {}
  for _, item in ipairs(FAMILIES) do
    local family, kind, help = unpack(item)
    local list = by_family[family]
    if list then
      table.sort(list, function(a, b)
        return sort_key(a) < sort_key(b)
      end)
      out[#out + 1] = ("# HELP %s %s\n# TYPE %s %s\n"):format(family, help, family, kind)
      for _, series in ipairs(list) do
        out[#out + 1] = ("%s %.14g\n"):format(series, shared:get(series))
      end
    end
  end
  out[#out + 1] = "# HELP kong_datastore_reachable Datastore reachable from Kong, 0 is "
                  .. "unreachable\n# TYPE kong_datastore_reachable gauge\n"
                  .. "kong_datastore_reachable 1\n"
  out[#out + 1] = ("# HELP kong_node_info Kong Node metadata information\n"
                   .. '# TYPE kong_node_info gauge\nkong_node_info{node_id="%s",version="%s"} 1\n')
                  :format(ngx.shared.kong:get("kong:node_id"), settings.version)
  return table.concat(out)
end


--- Also GET /status of the Admin API.
function status.summary()
  return {
    database = { reachable = true },
    server = {
      connections_active = tonumber(ngx.var.connections_active),
      connections_reading = tonumber(ngx.var.connections_reading),
      connections_writing = tonumber(ngx.var.connections_writing),
      connections_waiting = tonumber(ngx.var.connections_waiting),
    },
    memory = { workers_lua_vms = json.array(), lua_shared_dicts = {} },
  }
end


function status.serve()
  local path = ngx.var.uri
  if path == "/metrics" then
    ngx.header["Content-Type"] = "text/plain; charset=UTF-8"
    ngx.print(metrics_text())
  elseif path == "/status" then
    ngx.print(json.encode(status.summary()))
  elseif path == "/status/ready" then
    ngx.print('{"message":"ready"}')
  else
    ngx.status = 404
    ngx.print('{"message":"Not found"}')
  end
end


return status
