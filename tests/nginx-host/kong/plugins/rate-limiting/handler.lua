--- Test equipment: stands in for Kong's rate-limiting plugin, policy `local`.
-- Counters live in a shared dictionary under route, service, who calls, and the
-- start of the period (UTC). The count rises after the answer is decided, so calls
-- at the same moment may pass together, as in Kong. Headers as recorded in
-- tests/fixtures/kong/entries/kong-rate-limited-429.json.

local meta = require "kong.meta"

local counters = ngx.shared.kong_rate_limiting_counters


local rate_limiting = {
  PRIORITY = 910,
  VERSION = meta.version,
}


-- Period → what follows the day in a date, and its seconds. Month and year have no
-- fixed length; Kong counts 30 and 365 days.
local PERIODS = {
  { name = "second", title = "Second", format = "!%Y-%m-%dT%H:%M:%S", seconds = 1 },
  { name = "minute", title = "Minute", format = "!%Y-%m-%dT%H:%M", seconds = 60 },
  { name = "hour", title = "Hour", format = "!%Y-%m-%dT%H", seconds = 3600 },
  { name = "day", title = "Day", format = "!%Y-%m-%d", seconds = 86400 },
  { name = "month", title = "Month", format = "!%Y-%m", seconds = 2592000 },
  { name = "year", title = "Year", format = "!%Y", seconds = 31536000 },
}


-- Seconds since the period began.
local function elapsed(period, now)
  if period.seconds <= 86400 then
    return now % period.seconds
  end
  local date = os.date("!*t", now)
  local days = period.name == "month" and date.day - 1 or date.yday - 1
  return days * 86400 + now % 86400
end


local function identifier(config)
  local by = config.limit_by
  local who
  if by == "service" then
    who = (kong.router.get_service() or {}).id
  elseif by == "consumer" then
    who = (kong.client.get_consumer() or kong.client.get_credential() or {}).id
  elseif by == "credential" then
    who = (kong.client.get_credential() or {}).id
  elseif by == "header" then
    who = kong.request.get_header(config.header_name)
  elseif by == "path" and kong.request.get_path() == config.path then
    who = config.path
  end
  return who or kong.client.get_forwarded_ip()
end


local NOBODY = "00000000-0000-0000-0000-000000000000"

local function counter_key(config, who, period, now)
  return table.concat({
    "ratelimit", config.route_id or NOBODY, config.service_id or NOBODY, who,
    os.date(period.format, now), period.name,
  }, ":")
end


local function count_later(keys)
  ngx.timer.at(0, function()
    for _, item in ipairs(keys) do
      counters:incr(item.key, 1, 0, item.seconds)
    end
  end)
end


function rate_limiting:access(config)
  local now = ngx.time()
  local who = identifier(config)
  local usage, keys, exceeded = {}, {}, nil
  for _, period in ipairs(PERIODS) do
    local limit = config[period.name]
    if limit then
      local key = counter_key(config, who, period, now)
      local remaining = limit - (counters:get(key) or 0)
      usage[#usage + 1] = { period = period, limit = limit, remaining = remaining }
      keys[#keys + 1] = { key = key, seconds = period.seconds }
      if remaining <= 0 then
        exceeded = period
      end
    end
  end

  local headers, tightest = {}, nil
  for _, item in ipairs(usage) do
    local remaining = item.remaining
    if not exceeded or exceeded == item.period then
      remaining = remaining - 1
    end
    remaining = math.max(0, remaining)
    headers["X-RateLimit-Limit-" .. item.period.title] = item.limit
    headers["X-RateLimit-Remaining-" .. item.period.title] = remaining
    if not tightest or remaining < tightest.remaining
       or (remaining == tightest.remaining and item.period.seconds > tightest.period.seconds)
    then
      tightest = { period = item.period, limit = item.limit, remaining = remaining }
    end
  end
  local reset = math.max(1, tightest.period.seconds - elapsed(tightest.period, now))
  headers["RateLimit-Limit"] = tightest.limit
  headers["RateLimit-Remaining"] = tightest.remaining
  headers["RateLimit-Reset"] = reset
  if exceeded then
    headers["Retry-After"] = reset
  end
  if not config.hide_client_headers then
    kong.response.set_headers(headers)
  end

  if exceeded then
    return kong.response.error(config.error_code, config.error_message)
  end
  count_later(keys)
end


return rate_limiting
