--- kong.log: messages with the plugin's name, and the log entry of a call.
--
-- Fields of the entry and their order of precedence follow the entries recorded
-- from a running Kong 3.9.1 in tests/fixtures/kong/entries.

local phase = require "host.phase"
local settings = require "host.settings"

local check = phase.check
local LOG = phase.set("log")
local WITH_CALL = phase.set("rewrite", "access", "balancer", "response", "header_filter",
                            "body_filter", "log", "error")

local log = {}


-- --- messages ------------------------------------------------------------------

local LEVELS = {
  debug = ngx.DEBUG,
  info = ngx.INFO,
  notice = ngx.NOTICE,
  warn = ngx.WARN,
  err = ngx.ERR,
  crit = ngx.CRIT,
  alert = ngx.ALERT,
  emerg = ngx.EMERG,
}

local function plugin_name()
  if ngx.get_phase() == "init" then
    return "core"
  end
  return ngx.ctx.host_plugin_name or "core"
end


for name, level in pairs(LEVELS) do
  log[name] = function(...)
    local source = debug.getinfo(2, "Sl")
    ngx.log(level, "[kong] ", source.short_src:match("[^/]*$"), ":", source.currentline,
            " [", plugin_name(), "] ", ...)
  end
end


log.inspect = setmetatable({
  on = function() end,
  off = function() end,
}, { __call = function() end })


function log.deprecation(...)
  log.warn(...)
end


-- --- the log entry ---------------------------------------------------------------

local MODES = { set = true, add = true, replace = true }

--- Notes a change to the entry; applied, and checked, when it is made.
function log.set_serialize_value(key, value, options)
  check(WITH_CALL)
  if type(key) ~= "string" then
    error("key must be a string", 2)
  end
  local mode = options and options.mode or "set"
  if not MODES[mode] then
    error("mode must be 'set', 'add' or 'replace'", 2)
  end
  local call = ngx.ctx.host
  local changes = call.entry_changes or {}
  changes[#changes + 1] = { key = key, value = value, mode = mode }
  call.entry_changes = changes
end


local ENCODABLE = { ["nil"] = true, number = true, string = true, boolean = true }

local function is_encodable(value, seen)
  if ENCODABLE[type(value)] or value == ngx.null then
    return true
  elseif type(value) ~= "table" or seen[value] then
    return false
  end
  seen[value] = true
  for key, item in pairs(value) do
    if not (ENCODABLE[type(key)] and is_encodable(item, seen)) then
      return false
    end
  end
  return true
end


local function apply(entry, change)
  if not is_encodable(change.value, {}) then
    error("value must be nil, a number, string, boolean or a non-self-referencial table "
          .. "containing numbers, string and booleans", 3)
  end
  local node = entry
  local path, last = change.key:match("^(.*)%.([^.]*)$")
  for step in (path or ""):gmatch("[^.]+") do
    if node[step] == nil then
      if change.mode == "replace" then
        return
      end
      node[step] = {}
    elseif type(node[step]) ~= "table" then
      error("The key '" .. change.key .. "' could not be used as a serialize value. Subkey '"
            .. step .. "' is not a table. It's " .. tostring(node[step]))
    end
    node = node[step]
  end
  last = last or change.key
  local exists = node[last] ~= nil
  if (change.mode == "add" and exists) or (change.mode == "replace" and not exists) then
    return
  end
  node[last] = change.value
end


local function copy(value)
  if type(value) ~= "table" then
    return value
  end
  local result = {}
  for key, item in pairs(value) do
    result[key] = copy(item)
  end
  return result
end


local function redacted(request_headers)
  for _, name in ipairs({ "authorization", "proxy-authorization" }) do
    if request_headers[name] ~= nil then
      request_headers[name] = "REDACTED"
    end
  end
  return request_headers
end


local SOURCES = { error = "kong", exit = "kong", service = "upstream" }

local function upstream_uri(var)
  local path = var.upstream_uri or ""
  if path ~= "" and not path:find("?", 1, true) and var.is_args == "?" then
    path = path .. "?" .. (var.args or "")
  end
  return path
end


--- The entry of this call, with the changes the plugins asked for.
function log.serialize()
  check(LOG)
  local var = ngx.var
  local call = ngx.ctx.host
  local request_uri = var.request_uri or ""
  local entry = {
    request = {
      id = var.kong_request_id,
      uri = request_uri,
      url = ("%s://%s:%s%s"):format(var.scheme, var.host or "", var.server_port, request_uri),
      querystring = kong.request.get_query(),
      method = kong.request.get_method(),
      headers = redacted(ngx.req.get_headers()),
      size = tonumber(var.request_length),
    },
    upstream_uri = upstream_uri(var),
    upstream_status = var.upstream_status or "",
    response = {
      status = ngx.status,
      headers = ngx.resp.get_headers(),
      size = tonumber(var.bytes_sent),
    },
    latencies = {
      kong = call.proxy_latency_ms or call.response_latency_ms or 0,
      proxy = call.waiting_ms or -1,
      request = tonumber(var.request_time) * 1000,
      receive = call.receive_ms or 0,
    },
    tries = call.tries,
    authenticated_entity = call.credential and { id = call.credential.id },
    route = copy(call.route),
    service = copy(call.service),
    consumer = copy(call.consumer),
    client_ip = var.remote_addr,
    started_at = call.started_ms,
    source = SOURCES[kong.response.get_source()],
    workspace = settings.workspace,
    workspace_name = settings.workspace_name,
  }
  for _, change in ipairs(call.entry_changes or {}) do
    apply(entry, change)
  end
  return entry
end


return setmetatable(log, {
  __call = function(_, ...)
    log.notice(...)
  end,
})
