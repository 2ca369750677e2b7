--- Test equipment: stands in for Kong's http-log plugin.
-- One entry is sent as an object when max_batch_size is 1, otherwise as an array,
-- also when it is alone. Plugins that share endpoint, method, content type,
-- time-out and keepalive share a queue.

local http = require "host.http"
local json = require "host.json"
local meta = require "kong.meta"
local queue = require "kong.tools.queue"
local sandbox = require "host.sandbox"
local uri = require "host.uri"


local http_log = {
  PRIORITY = 12,
  VERSION = meta.version,
}


-- In pieces: brackets, commas and entries.
local function body_of(config, entries)
  if config.queue.max_batch_size == 1 then
    return { entries[1] }
  end
  local pieces = {}
  for i, entry in ipairs(entries) do
    pieces[2 * i - 1] = i == 1 and "[" or ","
    pieces[2 * i] = entry
  end
  pieces[#pieces + 1] = "]"
  return pieces
end


local function headers_of(config)
  local headers = { ["Content-Type"] = config.content_type }
  local userinfo = (uri.parse(config.http_endpoint) or {}).userinfo
  if userinfo then
    headers["Authorization"] = "Basic " .. ngx.encode_base64(userinfo)
  end
  for name, value in pairs(config.headers or {}) do
    headers[name] = headers[name] or value
  end
  return headers
end


local function send(config, entries)
  local endpoint = config.http_endpoint
  local response, err = http.request({
    method = config.method,
    url = endpoint,
    headers = headers_of(config),
    body = body_of(config, entries),
    timeout = config.timeout,
    keepalive = config.keepalive,
  })
  local address = endpoint:match("//([^/]*)") or endpoint
  if not response then
    return nil, "failed request to " .. address .. ": " .. tostring(err)
  elseif response.status >= 300 then
    return nil, ("request to %s returned status code %d and body %s")
                :format(address, response.status, response.body)
  end
  return true
end


local function queue_name(config)
  return table.concat({ config.http_endpoint, config.method, config.content_type,
                        config.timeout, config.keepalive, tostring(config.retry_count) }, ":")
end


function http_log:log(config)
  for key, code in pairs(config.custom_fields_by_lua or {}) do
    kong.log.set_serialize_value(key, assert(sandbox.compile(code))())
  end
  local conf = queue.get_plugin_params("http-log", config, queue_name(config))
  local ok, err = queue.enqueue(conf, send, config, json.encode_entry(kong.log.serialize()))
  if not ok then
    kong.log.err("Failed to enqueue log entry to log server: ", err)
  end
end


return http_log
