--- Test equipment: the part of lua-resty-http (which comes with Kong) that a plugin
--- needs to send one request, over the host's own client.

local client = require "host.http"

local http = {}
http.__index = http

local DEFAULT_TIMEOUT = 60000  -- milliseconds


function http.new()
  return setmetatable({ timeout = DEFAULT_TIMEOUT }, http)
end


function http:set_timeout(milliseconds)
  self.timeout = milliseconds
end


--- A Content-Length of the caller's own is passed over: it is made of the body.
--- { status, body }; nil, err. options: method, headers, body, keepalive_timeout in
--- milliseconds; ssl_verify is taken and means nothing here.
function http:request_uri(url, options)
  local headers = {}
  for name, value in pairs(options.headers or {}) do
    headers[name] = name:lower() ~= "content-length" and value or nil
  end
  return client.request({
    method = options.method or "GET",
    url = url,
    headers = headers,
    body = { options.body },
    timeout = self.timeout,
    keepalive = options.keepalive_timeout or DEFAULT_TIMEOUT,
  })
end


return http
