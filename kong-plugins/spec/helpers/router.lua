-- Leads calls through llm-router's access phase, and says what it did.

local M = {}

-- Modules that know nginx or Kong.
local MODULES = {
  "kong.plugins.llm-router.handler", "kong.plugins.llm-router.model_asked",
  "llm_gateway.early_reading", "llm_gateway.forwarded", "llm_gateway.reading",
  "llm_gateway.refusal", "llm_gateway.request_body",
  "llm_gateway.response_servers", "llm_gateway.route",
}


local function lowered(headers)
  local map = {}
  for name, value in pairs(headers or {}) do
    map[name:lower()] = value
  end

  return map
end


-- @return what does as a shared dict with room for everything
function M.dict()
  local values = {}

  return {
    values = values,
    get = function(_, key)
      return values[key]
    end,
    safe_set = function(_, key, value)
      values[key] = value
      return true
    end,
    incr = function(_, key, step, init)
      values[key] = (values[key] or init) + step
      return values[key]
    end,
    delete = function(_, key)
      values[key] = nil
    end,
  }
end


-- @param list models as in the plugin's settings
-- @param upstreams set of those that Kong has
function M.new(list, upstreams)
  local router = { conf = { models = list }, errors = {} }

  _G.ngx = {
    now = os.clock,
    sleep = function() end,
    update_time = function() end,
    thread = require("spec.helpers.threads").new(),
    req = {},
    var = {},
    ctx = {},
    shared = { llm_gateway = M.dict() },
  }
  _G.kong = {
    ctx = {},
    client = {},
    configuration = { loaded_plugins = {} },
    log = {
      err = function(...)
        router.errors[#router.errors + 1] = table.concat({ ... })
      end,
    },
    request = {},
    response = {},
    service = {
      request = {},
      set_target = function(host, port)
        router.target = host .. ":" .. port
      end,
      set_upstream = function(name)
        if not upstreams[name] then
          return nil, "could not find an Upstream named '" .. name .. "'"
        end
        ngx.ctx.balancer_data.host = name
        return true
      end,
    },
  }
  for _, name in ipairs(MODULES) do
    package.loaded[name] = nil
  end
  router.handler = require("kong.plugins.llm-router.handler")

  return setmetatable(router, { __index = M })
end


-- @param request { method, path, headers, body, in_file, never_comes, consumer,
-- http_version, hides_length }
-- @return table: exit (status, body, headers) when the plugin answered,
-- upstream or target, body and headers as they go to the server, asked
function M:call(request)
  local headers = lowered(request.headers)
  local sent = { body = request.body, headers = {} }
  headers["content-type"] = headers["content-type"] or "application/json"
  if request.body and headers["content-length"] == nil
    and not request.hides_length
  then
    headers["content-length"] = tostring(#request.body)
  end

  kong.ctx.plugin, kong.ctx.shared = {}, {}
  self.target = nil
  ngx.ctx.balancer_data = { type = "ipv4", host = "127.0.0.1", port = 8000,
                            retries = 0 }
  ngx.var = setmetatable({ kong_request_id = "f00d",
                           upstream_uri = request.path },
                         { __index = function(_, name)
                             local header = name:match("^http_(.*)$")
                             return header and headers[header:gsub("_", "-")]
                           end })
  local path
  ngx.req.read_body = function()
    if request.never_comes then
      coroutine.yield("a body")
    end
  end
  ngx.req.get_body_data = function()
    return not request.in_file and request.body or nil
  end
  ngx.req.get_body_file = function()
    if request.in_file and not path then
      path = os.tmpname()
      local file = assert(io.open(path, "wb"))
      file:write(request.body)
      file:close()
    end
    return path
  end
  kong.client.get_consumer = function()
    return request.consumer
  end
  kong.request.get_method = function()
    return request.method or "POST"
  end
  kong.request.get_path = function()
    return request.path
  end
  kong.request.get_http_version = function()
    return request.http_version or 1.1
  end
  kong.request.get_headers = function()
    return headers
  end
  kong.request.get_header = function(name)
    return headers[name:lower()]
  end
  kong.service.request.set_header = function(name, value)
    sent.headers[name] = value
  end
  kong.service.request.set_raw_body = function(body)
    sent.body = body
  end
  local written
  ngx.req.init_body = function()
    written = {}
    -- as nginx does
    if path then
      os.remove(path)
    end
  end
  ngx.req.append_body = function(text)
    written[#written + 1] = text
  end
  ngx.req.finish_body = function()
    sent.body = table.concat(written)
  end
  kong.response.exit = function(status, body, answer_headers)
    sent.exit = { status = status, body = body, headers = answer_headers }
    error(sent)
  end

  local ok, err = pcall(self.handler.access, self.handler, self.conf)
  if path then
    os.remove(path)
  end
  if not ok and err ~= sent then
    error(err, 0)
  end
  local data = ngx.ctx.balancer_data
  sent.upstream = data.type == "name" and data.host or nil
  sent.retries = data.retries
  sent.target = self.target
  sent.asked = kong.ctx.shared.llm_request

  return sent
end


return M
