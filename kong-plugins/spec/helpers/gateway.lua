-- Just enough of nginx and of Kong's PDK in memory to lead one call after the
-- other through the plugin's phases. It keeps the rules that matter here:
-- which phases run, what ngx.arg does, when nginx puts a body into a file.
-- Real phases are the business of the integration tests.

local utf8_text = require "spec.helpers.utf8_text"

local M = {}

local DEFAULTS = {
  max_request_body_size = 1048576,
  max_response_body_size = 1048576,
  capture = "full",
  include_usage = true,
  strict_requests = true,
  openai_errors = true,
  anonymous_per_minute = 60,
  refused_per_minute = 60,
  upload_room_mb = 0,
  body_seconds = 60,
}

local MODULE = "kong.plugins.llm-audit."

-- Modules beside the plugin that know nginx or Kong, or the worker's state.
local KEEPS_KONG = {
  ["llm_gateway.forwarded"] = true,
  ["llm_gateway.reading"] = true,
  ["llm_gateway.request_body"] = true,
  ["llm_gateway.response_servers"] = true,
  ["llm_gateway.route"] = true,
  ["llm_gateway.upload_room"] = true,
}


local function base64(text)
  return "base64:" .. text
end


-- Header tables of nginx do not care about case.
local function header_table(headers)
  local lowered = {}
  for name, value in pairs(headers or {}) do
    lowered[name:lower()] = value
  end

  return setmetatable({}, {
    __index = function(_, name)
      return lowered[name:lower()]
    end,
    __newindex = function(_, name, value)
      lowered[name:lower()] = value
    end,
  }), lowered
end


-- Loads the handler anew, as a worker would when it starts.
-- @param changes settings that differ from the defaults
function M.new(changes)
  local conf = {}
  for name, default in pairs(DEFAULTS) do
    conf[name] = default
  end
  for name, value in pairs(changes or {}) do
    conf[name] = value
  end

  local gateway = { conf = conf, time = 1700000000, errors = {},
                    consumer = { id = "id-of-alice", username = "alice" } }

  _G.ngx = {
    now = function()
      return gateway.time
    end,
    worker = {
      pid = function()
        return gateway.pid or 4711
      end,
    },
    encode_base64 = base64,
    re = {
      find = function(text, pattern, options)
        assert(pattern == "^" and options == "jou")
        return utf8_text.is_valid(text) and 1 or nil
      end,
    },
    shared = {},
    arg = {},
    req = {},
    sleep = function(seconds)
      gateway.time = gateway.time + seconds
    end,
    update_time = function() end,
    thread = require("spec.helpers.threads").new(),
  }
  _G.kong = {
    ctx = {},
    log = {
      err = function(line)
        gateway.errors[#gateway.errors + 1] = line
      end,
      warn = function() end,
    },
    -- Somebody is behind the call, unless a test says otherwise.
    client = {
      get_consumer = function()
        return gateway.consumer
      end,
      get_credential = function() end,
    },
    timer = { every = function() end },
    request = {},
    response = {},
    router = {},
    service = { request = {} },
  }

  for name in pairs(package.loaded) do
    if name:sub(1, #MODULE) == MODULE or KEEPS_KONG[name] then
      package.loaded[name] = nil
    end
  end
  gateway.handler = require(MODULE .. "handler")

  M.latest = setmetatable(gateway, { __index = M })

  return gateway
end


local function body_in_file(body)
  local path = os.tmpname()
  local file = assert(io.open(path, "wb"))
  file:write(body)
  file:close()

  return path
end


-- @param request { method, path, headers, body, in_file, chunked, http_version,
-- never_comes }; HTTP/2 says nothing of a body that is `chunked`
-- @return what the service gets to see
local function serve_request(gateway, request)
  local headers, lowered = header_table(request.headers)
  local body = request.body
  local path

  if body and not request.chunked and not lowered["content-length"] then
    lowered["content-length"] = tostring(#body)
  elseif request.chunked and (request.http_version or 1.1) < 2 then
    lowered["transfer-encoding"] = "chunked"
  end

  ngx.var = setmetatable({
    kong_request_id = "f00d",
    upstream_addr = request.upstream_addr,
    upstream_uri = request.upstream_uri or request.path
                   or "/v1/chat/completions",
  }, {
    __index = function(_, name)
      local header = name:match("^http_(.*)$")
      return header and lowered[(header:gsub("_", "-"))]
    end,
  })

  local was_read = false
  ngx.req.read_body = function()
    if request.never_comes then
      coroutine.yield("a body")
    end
    was_read = true
  end
  ngx.req.get_body_data = function()
    assert(was_read)
    return not request.in_file and body ~= "" and body or nil
  end
  ngx.req.get_body_file = function()
    assert(was_read)
    if request.in_file then
      path = path or request.in_file == true and body_in_file(body)
             or request.in_file
      return path
    end
  end

  kong.request.get_method = function()
    return request.method or "POST"
  end
  kong.request.get_raw_path = function()
    return request.path or "/v1/chat/completions"
  end
  kong.request.get_path = kong.request.get_raw_path
  kong.request.get_http_version = function()
    return request.http_version or 1.1
  end
  kong.request.get_query_arg = function(name)
    return (request.query or {})[name]
  end
  kong.request.get_header = function(name)
    return headers[name]
  end
  kong.request.get_headers = function()
    return lowered
  end
  -- What the router made of it; the host and Kong have it in a variable, too.
  kong.request.get_path = kong.request.get_raw_path
  kong.request.get_start_time = function()
    return gateway.started_at
  end

  local sent = { body = body, headers = lowered }
  kong.service.request.set_header = function(name, value)
    lowered[name:lower()] = value
  end
  kong.service.request.set_raw_body = function(new)
    sent.body = new
    sent.edited = true
    lowered["content-length"] = tostring(#new)
  end

  local written
  ngx.req.init_body = function()
    written = {}
    if path then
      os.remove(path)
    end
  end
  ngx.req.append_body = gateway.broken_append or function(text)
    written[#written + 1] = text
  end
  ngx.req.finish_body = function()
    kong.service.request.set_raw_body(table.concat(written))
  end

  return sent, function()
    if path then
      os.remove(path)
    end
    return was_read
  end
end


-- @param response { status, headers, source, chunks, eof, no_route }
local function serve_response(response)
  local headers, lowered = header_table(response.headers)
  ngx.header = headers

  kong.response.get_status = function()
    return response.status or 200
  end
  kong.response.set_status = function(status)
    response.status = status
  end
  kong.response.get_source = function()
    return response.source or "service"
  end
  kong.response.get_headers = function()
    return lowered
  end
  kong.response.set_header = function(name, value)
    headers[name] = tostring(value)
  end
  kong.response.clear_header = function(name)
    headers[name] = nil
  end
  kong.router.get_route = function()
    return not response.no_route and { id = "r" } or nil
  end

  return lowered
end


local function filter_body(gateway, chunk, eof)
  -- like nginx: a missing chunk reads as "", nil or "" drops it
  local data, last = chunk, eof
  ngx.arg = setmetatable({}, {
    __index = function(_, index)
      if index == 1 then
        return data
      end
      return last
    end,
    __newindex = function(_, index, value)
      assert(index == 1, "eof is not to be touched")
      gateway.replaced_chunks = gateway.replaced_chunks + 1
      data = value or ""
    end,
  })
  gateway.handler:body_filter(gateway.conf)

  return data
end


-- What Kong makes of an answer that a plugin gives.
M.kong_answer = require "spec.helpers.kong_error"


-- Leads a call through the phases.
-- @param exchange { request = …, response = …, refused = true when access
-- does not run, asked = what llm-router left, no_answer = true when the client
-- goes before headers are sent, ttfb = seconds until the first byte }
-- @return table: entry, client (body, headers, chunks), service, was_read,
-- refusal (when the plugin answered by itself)
function M:call(exchange)
  local request = exchange.request or {}
  local response = exchange.response or {}
  local handler, conf = self.handler, self.conf
  local chunks = response.chunks or {}

  kong.ctx.plugin = {}
  -- what a plugin in front of this one left
  kong.ctx.shared = { llm_request = exchange.asked }
  self.started_at = self.time * 1000
  self.replaced_chunks = 0

  local entry = { request = {}, response = {} }
  kong.log.set_serialize_value = function(key, value)
    local table_name, field = key:match("^(.*)%.(.*)$")
    if table_name then
      entry[table_name][field] = value
    else
      entry[key] = value
    end
  end

  local service, finish = serve_request(self, request)
  local answer, refusal
  kong.response.exit = function(status, body)
    answer = { status = status, body = body }
    -- Kong never goes on in a plugin that has answered
    error(answer)
  end
  if not exchange.refused then
    local ok, err = pcall(handler.access, handler, conf)
    if not ok then
      if type(err) ~= "table" then
        error(err, 0)
      end
      if err.body.message then
        refusal = { exit = err.status, message = err.body.message }
        response = M.kong_answer(err.status, err.body.message)
        chunks = response.chunks
      end
    end
  end

  local client = { chunks = {} }
  if not exchange.no_answer then
    client.headers = serve_response(response)
    handler:header_filter(conf)

    self.time = self.time + (exchange.ttfb or 0)
    for i, chunk in ipairs(chunks) do
      client.chunks[i] = filter_body(self, chunk, false)
    end
    if response.eof ~= false then
      client.chunks[#client.chunks + 1] = filter_body(self, "", true)
    end
  end
  client.body = table.concat(client.chunks)

  local context = kong.ctx.plugin
  handler:log(conf)

  return {
    entry = entry,
    -- what the plugin answered by itself
    answer = answer,
    llm = entry.llm,
    client = client,
    service = service,
    context = context,
    replaced_chunks = self.replaced_chunks,
    was_read = finish(),
    refusal = refusal,
  }
end


-- A body that is no plain text as it stands in the log entry.
M.base64 = base64


return M
