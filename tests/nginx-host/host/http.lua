--- A small HTTP/1.1 client over nginx's cosockets, for http-log.
-- Plain HTTP, one request a time, the answer's body is read and dropped so that
-- the connection can be used again.
--
-- The pieces of a body are sent one by one, as Kong's client does with those of a
-- batch: one system call each, and never a second copy of the whole.

local addresses = require "host.addresses"
local uri = require "host.uri"

local http = {}

local POOL_SIZE = 60
local MAX_BODY = 64 * 1024  -- of the answer, which only goes into a log line


local function read_chunked(socket)
  local pieces = {}
  while true do
    local line, err = socket:receive("*l")
    if not line then
      return nil, err
    end
    local size = tonumber(line:match("^%x+"), 16)
    if not size then
      return nil, "malformed chunk"
    end
    if size == 0 then
      socket:receive("*l")
      return table.concat(pieces)
    end
    local piece
    piece, err = socket:receive(size)
    if not piece then
      return nil, err
    end
    pieces[#pieces + 1] = piece
    socket:receive(2)
  end
end


local function read_headers(socket)
  local headers = {}
  while true do
    local line, err = socket:receive("*l")
    if not line then
      return nil, err
    elseif line == "" then
      return headers
    end
    local name, value = line:match("^([^:]+):%s*(.-)%s*$")
    if name then
      headers[name:lower()] = value
    end
  end
end


local function read_body(socket, status, headers)
  if status == 204 or status == 304 then
    return ""
  elseif (headers["transfer-encoding"] or ""):lower() == "chunked" then
    return read_chunked(socket)
  elseif headers["content-length"] then
    local size = tonumber(headers["content-length"]) or 0
    if size > MAX_BODY then
      return nil, "answer too large"
    end
    return size == 0 and "" or socket:receive(size)
  end
  headers.connection = "close"
  local body, _, partial = socket:receive("*a")
  return body or partial
end


local function read_response(socket)
  local line, err = socket:receive("*l")
  if not line then
    return nil, err
  end
  local version, status = line:match("^HTTP/(%d%.%d) (%d%d%d)")
  if not status then
    return nil, "malformed status line"
  end
  local headers
  headers, err = read_headers(socket)
  if not headers then
    return nil, err
  end
  if status == "100" then
    return read_response(socket)
  end
  local body
  body, err = read_body(socket, tonumber(status), headers)
  if not body then
    return nil, err
  end
  local keeps = version == "1.1" and (headers.connection or ""):lower() ~= "close"
  return { status = tonumber(status), body = body, keeps = keeps }
end


local function request_text(options, target)
  local length = 0
  for _, piece in ipairs(options.body) do
    length = length + #piece
  end
  local lines = {
    ("%s %s HTTP/1.1"):format(options.method, target.path),
    ("Host: %s:%d"):format(target.host, target.port),
    "User-Agent: nginx-test-host",
    "Content-Length: " .. length,
  }
  for name, value in pairs(options.headers) do
    lines[#lines + 1] = name .. ": " .. value
  end
  return table.concat(lines, "\r\n") .. "\r\n\r\n"
end


local function send(socket, head, pieces)
  local ok, err = socket:send(head)
  for _, piece in ipairs(pieces) do
    if not ok then
      return nil, err
    end
    ok, err = socket:send(piece)
  end
  return ok, err
end


--- { status, body }; nil, err. options: method, url, headers, body (a list of
--- strings), timeout and keepalive in milliseconds.
function http.request(options)
  local target, err = uri.parse(options.url)
  if not target then
    return nil, err
  elseif target.scheme ~= "http" then
    return nil, "this test host speaks plain http only"
  end

  local socket = ngx.socket.tcp()
  socket:settimeout(options.timeout)
  local ok
  ok, err = socket:connect(addresses.resolve(target.host) or target.host, target.port,
                           { pool_size = POOL_SIZE })
  if not ok then
    return nil, err
  end
  ok, err = send(socket, request_text(options, target), options.body)
  if not ok then
    socket:close()
    return nil, err
  end
  local response
  response, err = read_response(socket)
  if not response then
    socket:close()
    return nil, err
  end
  if response.keeps then
    socket:setkeepalive(options.keepalive, POOL_SIZE)
  else
    socket:close()
  end
  return response
end


return http
