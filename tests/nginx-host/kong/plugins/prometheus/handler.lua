--- Test equipment: stands in for Kong's prometheus plugin.
-- Counts in a shared dictionary under the finished name with labels, which is
-- what the status port prints. Names, labels and buckets as recorded in
-- tests/fixtures/kong/metrics-*.txt. Each group of metrics is off by default.
-- A call without a route is not counted.

local meta = require "kong.meta"

local metrics = ngx.shared.prometheus_metrics


local prometheus = {
  PRIORITY = 13,
  VERSION = meta.version,
}


local KONG_BUCKETS = { 1, 2, 5, 7, 10, 15, 20, 30, 50, 75, 100, 200, 500, 750, 1000, 3000, 6000 }
local UPSTREAM_BUCKETS = { 25, 50, 80, 100, 250, 400, 700, 1000, 2000, 5000, 10000, 30000, 60000 }


local function escape(text)
  return (tostring(text):gsub('[\\"\n]', { ["\\"] = "\\\\", ['"'] = '\\"', ["\n"] = "\\n" }))
end


local function labels(pairs_of_labels)
  local parts = {}
  for i = 1, #pairs_of_labels, 2 do
    parts[#parts + 1] = ('%s="%s"'):format(pairs_of_labels[i], escape(pairs_of_labels[i + 1]))
  end
  return "{" .. table.concat(parts, ",") .. "}"
end


local function add(name, label_text, value)
  metrics:incr(name .. label_text, value, 0)
end


local function observe(name, buckets, base, value)
  local inner = labels(base):sub(2, -2)
  for _, bound in ipairs(buckets) do
    -- A bucket exists from the first observation on, also when it stays empty.
    add(name .. "_bucket", ('{%s,le="%s"}'):format(inner, bound), value <= bound and 1 or 0)
  end
  add(name .. "_bucket", ('{%s,le="+Inf"}'):format(inner), 1)
  add(name .. "_count", labels(base), 1)
  add(name .. "_sum", labels(base), value)
end


function prometheus:log(config)
  local entry = kong.log.serialize()
  local route = entry.route
  if not route then
    return
  end
  local service = entry.service and (entry.service.name or entry.service.host) or ""
  local base = { "service", service, "route", route.name or route.id }
  local consumer = config.per_consumer and entry.consumer and entry.consumer.username or ""
  local function with(...)
    local all = { unpack(base) }
    for _, item in ipairs({ ... }) do
      all[#all + 1] = item
    end
    return all
  end

  if config.bandwidth_metrics then
    for direction, size in pairs({ ingress = entry.request.size, egress = entry.response.size }) do
      if size > 0 then
        add("kong_bandwidth_bytes", labels(with("direction", direction, "workspace",
            entry.workspace_name, "consumer", consumer)), size)
      end
    end
  end

  if config.status_code_metrics then
    local source = kong.response.get_source() == "service" and "service" or "kong"
    add("kong_http_requests_total", labels(with("code", entry.response.status, "source", source,
        "workspace", entry.workspace_name, "consumer", consumer)), 1)
  end

  if config.latency_metrics then
    local of_workspace = with("workspace", entry.workspace_name)
    observe("kong_request_latency_ms", UPSTREAM_BUCKETS, of_workspace, entry.latencies.request)
    if entry.latencies.proxy >= 0 then
      observe("kong_upstream_latency_ms", UPSTREAM_BUCKETS, of_workspace, entry.latencies.proxy)
    end
    observe("kong_kong_latency_ms", KONG_BUCKETS, of_workspace, entry.latencies.kong)
  end
end


return prometheus
