-- Calls that the gateway refuses, of which anybody can make as many as he
-- likes, so that what they leave is bounded. Their entries are small: short
-- headers, of unknown callers six at most, addresses cut.
--
-- Nobody stands behind most of them: no key, a wrong one, a path that no route
-- has.
--
--   * Beyond `anonymous_per_minute` of a client address they leave no entry of
--     their own. They are counted, and the collector gets the counts by
--     address, minute and status (sync.lua). Until the minute is over the
--     pre-function (bearer.lua) then answers calls without a key with 429,
--     before key-auth.
--   * A valid key is served, however many failed calls come from its address:
--     people behind one NAT share the address. So a wrong key is still looked
--     at, and answered with 401.
--
-- Others have a valid key and are over a limit, or ask for what they may not
-- have: a script that does not wait as its answer asks makes thousands a
-- second. Beyond `refused_per_minute` of a user they are only counted, too: by
-- user, minute, status and what refused them. They are never counted by
-- address, and hold nobody else's calls up. What came to a model server, and
-- what it answered, is no such call.
--
-- Needs the shared dict `llm_gateway`; without it nothing is limited.

local log_queue = require "kong.plugins.llm-audit.log_queue"

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
local pairs = pairs
local sub = string.sub
local tonumber = tonumber
local type = type

local M = {}

-- Of request headers and addresses in the entry of a refused call. An operator
-- sees who it was; nobody fills a disk with it.
local KEPT_HEADERS = { "host", "user-agent", "content-type", "content-length",
                       "x-forwarded-for", "traceparent" }
local MAX_HEADER_BYTES = 256

-- No request has more (bearer.lua).
local MAX_HEADERS = 1000

-- Kong keeps them out of its entries, too.
local SECRET_HEADERS = { authorization = true, ["proxy-authorization"] = true,
                         ["x-api-key"] = true, cookie = true }
local MAX_ADDRESS_BYTES = 512

-- Counts that wait for the collector: one an address, minute and status. With
-- more than these the further addresses are counted together.
local MAX_COUNTS = 5000
local OTHER = "other"

-- Counts wait this long for a collector that is away.
local KEEP_SECONDS = 86400

-- The keys of counts, of calls without a valid key and of users.
local LIST = "refused:list"
local USERS = "refused:users"

-- Longer names are no names of people; the collector takes no longer ones.
local MAX_NAME_BYTES = 128

-- What refused a call where it was none of our plugins in front: Kong's
-- rate-limiting, llm-audit itself, or a plugin that others put in.
local KONG = "kong"


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


-- Whether the gateway answered in place of the model server.
local function is_own(status)
  return status >= 400 and kong.response.get_source() ~= "service"
end


-- Whether the gateway answered a call that nobody is known to have made.
function M.is_refused(status)
  return status < 500 and is_own(status)
         and kong.client.get_consumer() == nil
         and kong.client.get_credential() == nil
end


-- @return the user whose call the gateway refused; nil for other calls
local function refused_user(status)
  local server = ngx.var.upstream_addr
  if not is_own(status) or kong.response.get_source() ~= "exit"
    or server and server ~= ""
  then
    return nil
  end

  return kong.client.get_consumer()
end


-- Counts a call of somebody in this minute.
-- @return whether it was more than `limit`
local function is_above(shared, kind, who, limit)
  local key = kind .. floor(ngx.now() / 60) .. ":" .. who
  -- safe_add: a flood from many addresses must not push out what others keep
  -- in this dict. Where there is no room nobody is limited.
  shared:safe_add(key, 0, 120)
  local calls = shared:incr(key, 1)

  return calls ~= nil and calls > limit
end


-- Counts a refused call.
-- @return whether its address has made more than `limit` of them in this minute
function M.is_over(limit)
  local shared = dict()
  if limit == 0 or not shared then
    return false
  end

  local address = ngx.var.remote_addr or OTHER
  if not is_above(shared, "failed:", network(address), limit) then
    return false
  end

  shared:safe_add("over:" .. address, true, 60 - floor(ngx.now()) % 60)

  return true
end


-- Counts a refused call of a user.
-- @return whether he has made more than `limit` of them in this minute
local function is_user_over(user, limit)
  local shared = dict()

  return limit ~= 0 and shared ~= nil
         and is_above(shared, "failed-user:", user.id, limit)
end


-- Adds a call to a count that waits for the collector.
-- @param list of the keys of such counts
-- @param other the key where there are too many
local function add(list, key, other)
  local shared = dict()
  local calls = shared:incr(key, 1)
  if calls then
    return
  end

  if (shared:llen(list) or 0) >= MAX_COUNTS then
    key = other
    if shared:incr(key, 1) then
      return
    end
  end

  if shared:safe_add(key, 1, KEEP_SECONDS) then
    shared:lpush(list, key)
  end
end


local function this_minute()
  return floor(ngx.now() / 60) * 60
end


-- Notes a call without a valid key that leaves no entry.
function M.note(status)
  local key = format("refused:%d:%d:", this_minute(), status)
  add(LIST, key .. network(ngx.var.remote_addr or OTHER), key .. OTHER)
end


-- @return the name under which the collector knows a user
local function name_of(user)
  local name = user.username
  if type(name) ~= "string" or name == "" then
    name = user.custom_id
  end

  return type(name) == "string" and name ~= "" and #name <= MAX_NAME_BYTES
         and name or user.id
end


-- Notes a user's call that leaves no entry.
-- @param by what refused it, nil where no plugin of ours says so
local function note_user(user, status, by)
  local key = format("refused-user:%d:%d:%s:", this_minute(), status,
                     by or KONG)
  -- No user's name is empty.
  add(USERS, key .. name_of(user), key)
end


-- Looks at a call that ends: counts it if it was refused.
-- @param asked what is known of the request, see llm_gateway.reading
-- @return nil for calls that were not refused; "counted" for those that leave
-- no entry; else "anonymous" or "user"
function M.look(conf, status, asked)
  -- Without its queue nobody keeps an entry out.
  local can_count = log_queue.is_installed()

  if M.is_refused(status) then
    if can_count and M.is_over(conf.anonymous_per_minute) then
      M.note(status)
      return "counted"
    end
    return "anonymous"
  end

  local user = conf.capture ~= "none" and refused_user(status)
  if not user then
    return nil
  end

  if can_count and is_user_over(user, conf.refused_per_minute) then
    note_user(user, status, asked.refused_by)
    return "counted"
  end

  return "user"
end


-- Takes counts of minutes that are over, oldest first.
-- @param read makes a count of what stands behind minute and status in its key
-- @return a list of counts, with key, minute, status and count
local function take(list, pattern, read, most)
  local shared = dict()
  local taken = {}

  while shared and #taken < most do
    local key = shared:rpop(list)
    if not key then
      break
    end

    local minute, status, rest = match(key, pattern)
    minute = tonumber(minute)
    if minute + 60 > ngx.now() then
      shared:rpush(list, key)
      break
    end

    local count = read(rest)
    count.key = key
    count.list = list
    count.minute = minute
    count.status = tonumber(status)
    count.count = shared:get(key) or 0
    taken[#taken + 1] = count
  end

  return taken
end


local function of_address(address)
  return { client_ip = address }
end


local function of_user(rest)
  local by, name = match(rest, "^(%w+):(.*)$")

  return { refused_by = by, user = name }
end


-- @return a list of { key, client_ip, minute, status, count }
function M.take(most)
  return take(LIST, "^refused:(%d+):(%d+):(.*)$", of_address, most)
end


-- @return a list of { key, user, refused_by, minute, status, count }; the user
-- is empty where there were too many
function M.take_users(most)
  return take(USERS, "^refused%-user:(%d+):(%d+):(.*)$", of_user, most)
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
    dict():rpush(taken[i].list, taken[i].key)
  end
end


local function cut(text, most)
  return type(text) == "string" and #text > most and sub(text, 1, most) or text
end


local function kept_headers()
  local headers = {}
  for _, name in ipairs(KEPT_HEADERS) do
    headers[name] = cut(kong.request.get_header(name), MAX_HEADER_BYTES)
  end

  return headers
end


-- What a known caller says of his calls may tell which program of his it is.
local function short_headers()
  local headers = {}
  for name, value in pairs(kong.request.get_headers(MAX_HEADERS)) do
    if type(value) == "string" and #value <= MAX_HEADER_BYTES
      and not SECRET_HEADERS[name]
    then
      headers[name] = value
    end
  end

  return headers
end


-- Makes the entry of this call small.
-- @param kind what M.look found
function M.shorten(kind)
  local set_value = kong.log.set_serialize_value
  local headers = kind == "user" and short_headers() or kept_headers()

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
