-- Calls that the gateway refuses because nobody stands behind them: no key, a
-- wrong one, a path that no route has. Anybody who reaches the port can make
-- them, as many as he likes, so what they leave is bounded.
--
--   * Their entries are small: no body, a short list of headers, addresses cut.
--   * Beyond `anonymous_per_minute` of a client address they leave no entry of
--     their own. They are counted, and the collector gets the counts by
--     address, minute and status (sync.lua). Until the minute is over the
--     pre-function (bearer.lua) then answers calls without a key with 429,
--     before key-auth.
--   * A valid key is served, however many failed calls come from its address:
--     people behind one NAT share the address. So a wrong key is still looked
--     at, and answered with 401.
--
-- Needs the shared dict `llm_gateway`; without it nothing is limited.

local concat = table.concat
local find = string.find
local floor = math.floor
local format = string.format
local gmatch = string.gmatch
local ipairs = ipairs
local kong = kong
local match = string.match
local min = math.min
local ngx = ngx
local sub = string.sub
local tonumber = tonumber
local type = type

local M = {}

-- Of request headers and addresses in the entry of a refused call. An operator
-- sees who it was; nobody fills a disk with it.
local KEPT_HEADERS = { "host", "user-agent", "content-type", "content-length",
                       "x-forwarded-for", "traceparent" }
local MAX_HEADER_BYTES = 256
local MAX_ADDRESS_BYTES = 512

-- Counts that wait for the collector: one an address, minute and status. With
-- more than these the further addresses are counted together.
local MAX_COUNTS = 5000
local OTHER = "other"

-- Counts wait this long for a collector that is away.
local KEEP_SECONDS = 86400

local LIST = "refused:list"


local function dict()
  return ngx.shared and ngx.shared.llm_gateway
end


-- An IPv6 client has a whole /64 of addresses to choose from, so that is what
-- is counted.
local function network(address)
  if not find(address, ":", 1, true) then
    return address
  end

  local mapped = match(address, "^::[fF][fF][fF][fF]:(%d+%.%d+%.%d+%.%d+)$")
  if mapped then
    return mapped
  end

  local head, tail = match(address, "^(.-)::(.*)$")
  local groups, behind = {}, 0
  for group in gmatch(head or address, "[^:]+") do
    groups[#groups + 1] = group
  end
  for _ in gmatch(tail or "", "[^:]+") do
    behind = behind + 1
  end
  if head then
    -- "::" stands for as many zeros as are missing; of those that follow it
    -- some may still belong to the first four groups.
    local zeros = 8 - #groups - behind
    for _ = 1, zeros do
      groups[#groups + 1] = "0"
    end
    for group in gmatch(tail, "[^:]+") do
      groups[#groups + 1] = group
    end
  end

  return concat(groups, ":", 1, min(4, #groups)) .. "::"
end

M.network = network


-- Whether the gateway answered a call that nobody is known to have made.
function M.is_refused(status)
  return status >= 400 and status < 500
         and kong.response.get_source() ~= "service"
         and kong.client.get_consumer() == nil
         and kong.client.get_credential() == nil
end


-- Counts a refused call.
-- @return whether its address has made more than `limit` of them in this minute
function M.is_over(limit)
  local shared = dict()
  if limit == 0 or not shared then
    return false
  end

  local now = ngx.now()
  local address = ngx.var.remote_addr or OTHER
  local key = "failed:" .. floor(now / 60) .. ":" .. network(address)
  -- safe_add: a flood from many addresses must not push out what others keep
  -- in this dict. Where there is no room the address is not limited.
  shared:safe_add(key, 0, 120)
  local calls = shared:incr(key, 1)
  if not calls or calls <= limit then
    return false
  end

  shared:safe_add("over:" .. address, true, 60 - floor(now) % 60)

  return true
end


-- Notes a call that leaves no entry.
function M.note(status)
  local shared = dict()
  local minute = floor(ngx.now() / 60) * 60
  local address = network(ngx.var.remote_addr or OTHER)
  local key = format("refused:%d:%d:%s", minute, status, address)

  local calls = shared:incr(key, 1)
  if calls then
    return
  end

  if (shared:llen(LIST) or 0) >= MAX_COUNTS then
    key = format("refused:%d:%d:%s", minute, status, OTHER)
    if shared:incr(key, 1) then
      return
    end
  end

  if shared:safe_add(key, 1, KEEP_SECONDS) then
    shared:lpush(LIST, key)
  end
end


-- Takes counts of minutes that are over, oldest first.
-- @return a list of { key, client_ip, minute, status, count }
function M.take(most)
  local shared = dict()
  local taken = {}

  while shared and #taken < most do
    local key = shared:rpop(LIST)
    if not key then
      break
    end

    local minute, status, address = match(key, "^refused:(%d+):(%d+):(.*)$")
    minute = tonumber(minute)
    if minute + 60 > ngx.now() then
      shared:rpush(LIST, key)
      break
    end

    taken[#taken + 1] = {
      key = key,
      client_ip = address,
      minute = minute,
      status = tonumber(status),
      count = shared:get(key) or 0,
    }
  end

  return taken
end


-- The collector has them.
function M.forget(taken)
  for _, count in ipairs(taken) do
    dict():delete(count.key)
  end
end


-- The collector does not have them.
function M.give_back(taken)
  for i = #taken, 1, -1 do
    dict():rpush(LIST, taken[i].key)
  end
end


local function cut(text, most)
  return type(text) == "string" and #text > most and sub(text, 1, most) or text
end


-- Makes the entry of this call small.
function M.shorten()
  local set_value = kong.log.set_serialize_value
  local headers = {}
  for _, name in ipairs(KEPT_HEADERS) do
    headers[name] = cut(kong.request.get_header(name), MAX_HEADER_BYTES)
  end

  local uri = cut(ngx.var.request_uri or "", MAX_ADDRESS_BYTES)
  set_value("request.headers", headers)
  set_value("request.uri", uri)
  set_value("request.url", format("%s://%s%s", ngx.var.scheme or "http",
                                  cut(ngx.var.host or "", MAX_HEADER_BYTES),
                                  uri))
  set_value("request.querystring", nil)
  set_value("upstream_uri", cut(ngx.var.upstream_uri or "", MAX_ADDRESS_BYTES))
end


return M
