--- kong.request: what the client sent.

local phase = require "host.phase"
local uri = require "host.uri"
local json = require "host.json"

local check = phase.check
local REQUEST = phase.request
local BEFORE_CONTENT = phase.set("rewrite", "access", "response", "error", "admin_api")

local MAX_ARGS = 1000


local request = {}


local function limit(max, name)
  if max == nil then
    return
  end
  if type(max) ~= "number" then
    error(name .. " must be a number", 3)
  elseif max < 1 then
    error(name .. " must be >= 1", 3)
  elseif max > MAX_ARGS then
    error(name .. " must be <= " .. MAX_ARGS, 3)
  end
end


function request.get_scheme()
  check(REQUEST)
  return ngx.var.scheme
end


function request.get_host()
  check(REQUEST)
  return ngx.var.host
end


function request.get_port()
  return tonumber(ngx.var.server_port)
end


function request.get_http_version()
  check(REQUEST)
  return ngx.req.http_version()
end


function request.get_method()
  check(REQUEST)
  local call = ngx.ctx.host
  if call and call.unexpected and ngx.req.http_version() < 2 then
    -- nginx turns the method into GET on its way to the error handler.
    local method = (ngx.var.request or ""):match("^(%S+) ")
    if method then
      return method
    end
  end
  return ngx.req.get_method()
end


function request.get_raw_path()
  check(REQUEST)
  return (ngx.var.request_uri or ""):match("^[^?]*")
end


function request.get_path()
  check(REQUEST)
  return uri.normalize(request.get_raw_path())
end


function request.get_path_with_query()
  check(REQUEST)
  return ngx.var.request_uri or ""
end


function request.get_raw_query()
  check(REQUEST)
  return ngx.var.args or ""
end


function request.get_query(max_args)
  check(REQUEST)
  limit(max_args, "max_args")
  return ngx.req.get_uri_args(max_args)
end


function request.get_query_arg(name)
  check(REQUEST)
  if type(name) ~= "string" then
    error("query argument name must be a string", 2)
  end
  local value = ngx.req.get_uri_args()[name]
  if type(value) == "table" then
    return value[1]
  end
  return value
end


function request.get_header(name)
  check(REQUEST)
  if type(name) ~= "string" then
    error("header name must be a string", 2)
  end
  local value = ngx.req.get_headers()[name]
  if type(value) == "table" then
    return value[1]
  end
  return value
end


function request.get_headers(max_headers)
  check(REQUEST)
  limit(max_headers, "max_headers")
  return ngx.req.get_headers(max_headers)
end


local function read_file(path, max_size)
  local file, err = io.open(path, "r")
  if not file then
    return nil, "failed to open cached request body '" .. path .. "': " .. err
  end
  local size = file:seek("end") or 0
  if max_size > 0 and size > max_size then
    file:close()
    return nil, ("request body file too big: %d > %d"):format(size, max_size)
  end
  file:seek("set")
  local body = file:read("*a")
  file:close()
  return body
end


--- The body; nil and a message for one that nginx has put into a file, unless a
--- maximum size for such files is given (0: any size).
function request.get_raw_body(max_allowed_file_size)
  check(BEFORE_CONTENT)
  ngx.req.read_body()
  local body = ngx.req.get_body_data()
  if body then
    return body
  end
  local path = ngx.req.get_body_file()
  if not path then
    return ""
  end
  if not max_allowed_file_size or max_allowed_file_size < 0 then
    return nil, "request body did not fit into client body buffer, consider raising "
             .. "'client_body_buffer_size'"
  end
  return read_file(path, max_allowed_file_size)
end


--- Form and JSON bodies only; key-auth's key_in_body needs it.
function request.get_body(mimetype, max_args, max_allowed_file_size)
  check(BEFORE_CONTENT)
  local content_type = mimetype or request.get_header("Content-Type")
  if not content_type then
    return nil, "missing content type"
  end
  local kind = content_type:lower():match("^[^;]*")
  if kind == "application/x-www-form-urlencoded" then
    ngx.req.read_body()
    return ngx.req.get_post_args(max_args or 100), nil, kind
  elseif kind == "application/json" then
    local body, err = request.get_raw_body(max_allowed_file_size)
    local value = body and json.decode(body)
    if type(value) ~= "table" then
      return nil, err or "invalid json body", kind
    end
    return value, nil, kind
  end
  return nil, "unsupported content type '" .. content_type .. "'", kind
end


function request.get_forwarded_scheme()
  return request.get_scheme()
end


function request.get_forwarded_host()
  return request.get_host()
end


function request.get_forwarded_port()
  return request.get_port()
end


function request.get_forwarded_path()
  return request.get_path()
end


--- Milliseconds since 1970 at which nginx began with the request.
function request.get_start_time()
  check(REQUEST)
  local call = ngx.ctx.host
  return call and call.started_ms or ngx.req.start_time() * 1000
end


return request
