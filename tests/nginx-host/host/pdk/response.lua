--- kong.response: what goes to the client.

local phase = require "host.phase"
local headers = require "host.pdk.headers"
local error_body = require "host.error_body"
local json = require "host.json"

local check = phase.check
local READ = phase.set("response", "header_filter", "body_filter", "log", "error", "admin_api")
local WRITE = phase.set("rewrite", "access", "response", "balancer", "header_filter", "error",
                        "admin_api")
local BODY_FILTER = phase.set("body_filter")


local response = {}


-- --- reading -----------------------------------------------------------------

function response.get_status()
  check(READ)
  return ngx.status
end


function response.get_headers(max_headers)
  check(READ)
  return ngx.resp.get_headers(max_headers)
end


function response.get_header(name)
  check(READ)
  if type(name) ~= "string" then
    error("header name must be a string", 2)
  end
  local value = ngx.resp.get_headers()[name]
  if type(value) == "table" then
    return value[1]
  end
  return value
end


--- Who answers: "exit" a plugin or Kong itself, "error" nginx because the
--- upstream failed, "service" the upstream.
function response.get_source()
  check(READ)
  local call = ngx.ctx.host
  if not call or call.unexpected then
    return "error"
  elseif call.exited then
    return "exit"
  elseif call.proxied then
    return "service"
  end
  return "error"
end


-- --- writing headers ---------------------------------------------------------

local function check_not_sent()
  if ngx.headers_sent then
    error("headers have already been sent", 3)
  end
end


-- nginx decides on the framing itself.
local function is_ignored(name)
  local lower = name:lower()
  if lower == "transfer-encoding" or lower == "transfer_encoding" then
    kong.log.warn("manually setting Transfer-Encoding. Ignored.")
    return true
  end
end


function response.set_status(status)
  check(WRITE)
  check_not_sent()
  if type(status) ~= "number" then
    error("code must be a number", 2)
  end
  ngx.status = status
end


function response.set_header(name, value)
  check(WRITE)
  check_not_sent()
  headers.validate(name, value)
  if not is_ignored(name) then
    ngx.header[name] = headers.normalize(value)
  end
end


function response.add_header(name, value)
  check(WRITE)
  check_not_sent()
  headers.validate(name, value)
  require("ngx.resp").add_header(name, headers.normalize(value))
end


function response.set_headers(map)
  check(WRITE)
  check_not_sent()
  headers.validate_all(map)
  for name, value in pairs(map) do
    if not is_ignored(name) then
      ngx.header[name] = headers.normalize(value)
    end
  end
end


function response.clear_header(name)
  check(WRITE)
  check_not_sent()
  if type(name) ~= "string" then
    error("header name must be a string", 2)
  end
  ngx.header[name] = nil
end


-- --- the body as a whole -------------------------------------------------------

--- Holds the body back until it is complete: nil before that.
function response.get_raw_body()
  check(BODY_FILTER)
  local call = ngx.ctx.host
  local chunk, eof = ngx.arg[1], ngx.arg[2]
  local pieces = call.held_body
  if eof and not pieces then
    return chunk
  end
  pieces = pieces or {}
  pieces[#pieces + 1] = chunk
  if not eof then
    call.held_body = pieces
    ngx.arg[1] = nil
    return nil
  end
  local body = table.concat(pieces)
  call.held_body = nil
  ngx.arg[1] = body
  return body
end


function response.set_raw_body(body)
  check(BODY_FILTER)
  if type(body) ~= "string" then
    error("body must be a string", 2)
  end
  ngx.arg[1] = body == "" and "\n" or body
  ngx.arg[2] = true
  ngx.ctx.host.held_body = nil
end


-- --- ending a call -------------------------------------------------------------

local function send(answer)
  check_not_sent()
  local status, body = answer.status, answer.body
  ngx.status = status

  local given = {}
  for name, value in pairs(answer.headers or {}) do
    if not is_ignored(name) then
      ngx.header[name] = headers.normalize(value)
      given[name:lower():gsub("_", "-")] = true
    end
  end

  if type(body) == "table" then
    body = json.encode(body)
    if not given["content-type"] then
      ngx.header["Content-Type"] = "application/json; charset=utf-8"
    end
  end
  if not given["content-length"] then
    ngx.header["Content-Length"] = body and #body or 0
  end

  if ngx.ctx.host_phase == "header_filter" then
    -- Too late to print: body_filter puts it in place of what comes.
    ngx.ctx.host.replaced_body = body or ""
    return ngx.exit(ngx.OK)
  end
  if body then
    ngx.print(body)
  end
  return ngx.exit(status)
end

response.send = send


-- In access an answer waits until the settings of all plugins are collected (the
-- later ones still see header_filter, body_filter and log), and the plugin that
-- gave it never goes on: its coroutine is left suspended, so that even a pcall
-- around the exit cannot catch it.
local function finish(answer)
  local call = ngx.ctx.host
  call.exited = true
  if call.delays_answers and not call.delayed then
    call.delayed = answer
    return coroutine.yield()
  end
  return send(answer)
end


local function check_status(status, lowest)
  if type(status) ~= "number" then
    error("code must be a number", 3)
  elseif status < lowest or status > 599 then
    error(("code must be a number between %u and 599"):format(lowest), 3)
  end
end


function response.exit(status, body, header_map)
  check(WRITE)
  check_not_sent()
  check_status(status, 100)
  if body ~= nil and type(body) ~= "string" and type(body) ~= "table" then
    error("body must be a nil, string or table", 2)
  end
  if header_map ~= nil then
    headers.validate_all(header_map)
  end
  return finish({ status = status, body = body, headers = header_map })
end


--- Ends the call with an error body in the kind the client accepts.
function response.error(status, message, header_map)
  check(WRITE)
  check_not_sent()
  check_status(status, 400)
  if type(message) == "table" then
    message = json.encode(message)
  end
  local all = {}
  for name, value in pairs(header_map or {}) do
    all[name] = value
  end
  local content_type = all["Content-Type"]
    or error_body.content_type(ngx.req.get_headers()["Accept"])
  all["Content-Type"] = content_type
  return finish({
    status = status,
    headers = all,
    body = error_body.render(content_type, message or error_body.message(status),
                             ngx.var.kong_request_id),
  })
end


return response
