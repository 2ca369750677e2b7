--- The part of Kong's Admin API with which the gateway is configured.
--
--   GET  /            version, plugins on this server      GET /status
--   GET  /plugins/enabled
--   GET, POST                  /X                 services, routes, consumers,
--                                                 plugins, key-auths, upstreams
--   GET, PUT, PATCH, DELETE    /X/{id or name}
--   the same below a parent    /services/{s}/routes, /services/{s}/plugins,
--                              /routes/{r}/plugins, /consumers/{c}/plugins,
--                              /consumers/{c}/key-auth, /upstreams/{u}/targets
--   GET  /upstreams/{u}/health   who is HEALTHY
--
-- Bodies are JSON or forms (`config.hour=100`, `paths[]=/v1`, `config.access[1]=…`).
-- Lists are pages: {"data":[…],"next":…}, 100 entries or `size`, at most 1000.

local balancer = require "host.balancer"
local entities = require "host.entities"
local forms = require "host.forms"
local json = require "host.json"
local plugins = require "host.plugins"
local settings = require "host.settings"
local status = require "host.status"
local store = require "host.store"
local uuid = require "host.uuid"

local null = json.null

local admin = {}

local COLLECTIONS = {
  services = "services",
  routes = "routes",
  consumers = "consumers",
  plugins = "plugins",
  ["key-auths"] = "keyauth_credentials",
  upstreams = "upstreams",
}

-- parent → path element → collection
local NESTED = {
  services = { routes = "routes", plugins = "plugins" },
  routes = { plugins = "plugins" },
  consumers = { plugins = "plugins", ["key-auth"] = "keyauth_credentials" },
  upstreams = { targets = "targets" },
}

local PARENT_FIELD = { services = "service", routes = "route", consumers = "consumer",
                       upstreams = "upstream" }

local HTTP_STATUS = { [2] = 400, [4] = 400, [5] = 409, [6] = 404, [7] = 400, [8] = 500, [9] = 400 }


-- --- answers -------------------------------------------------------------------------

local function answer(code, body)
  ngx.status = code
  ngx.header["Content-Type"] = "application/json; charset=utf-8"
  ngx.header["Access-Control-Allow-Origin"] = "*"
  ngx.header["Server"] = settings.server_token
  ngx.header["X-Nginx-Test-Host"] = "not Kong"
  local text = body and json.encode(body) or ""
  ngx.header["Content-Length"] = #text
  ngx.print(text)
end


local function not_found()
  return answer(404, { message = "Not found" })
end


local function failed(err)
  return answer(HTTP_STATUS[err.code] or 500, err)
end


-- --- input ---------------------------------------------------------------------------

--- The body as a table, and whether it came as a form; nil, message.
local function read_input()
  ngx.req.read_body()
  local body = ngx.req.get_body_data() or ""
  local content_type = (ngx.var.content_type or ""):lower()
  if content_type:find("application/json", 1, true) then
    if body == "" then
      return {}, false
    end
    local input = json.decode(body)
    if type(input) ~= "table" then
      return nil, "Cannot parse JSON body"
    end
    return input, false
  end
  return forms.decode(body), true
end


-- --- reading -------------------------------------------------------------------------

local function in_order(document, name, filter)
  local list = {}
  for _, entity in pairs(document[name]) do
    if filter(entity) then
      list[#list + 1] = entity
    end
  end
  table.sort(list, function(a, b)
    return a.id < b.id
  end)
  return list
end


local function list(name, filter, path)
  local args = ngx.req.get_uri_args()
  local size = tonumber(args.size or 100)
  if not size or size < 1 or size > 1000 then
    return failed({ code = 9, name = "invalid size",
                    message = "size must be an integer between 1 and 1000" })
  end
  local first = 1
  if args.offset then
    first = tonumber(ngx.decode_base64(args.offset) or "")
    if not first then
      return failed({ code = 7, name = "invalid offset",
                      message = ("'%s' is not a valid offset: bad base64 encoding")
                              :format(args.offset) })
    end
  end

  local all = in_order(store.read(), name, filter)
  local data = json.array()
  for i = first, math.min(first + size - 1, #all) do
    data[#data + 1] = entities.represent(name, all[i])
  end
  local next_page, offset = null, nil
  if first + size <= #all then
    offset = ngx.encode_base64(tostring(first + size))
    next_page = path .. "?offset=" .. ngx.escape_uri(offset)
                .. (args.size and "&size=" .. args.size or "")
  end
  return answer(200, { data = data, next = next_page, offset = offset })
end


-- --- writing -------------------------------------------------------------------------

local function create(name, fixed)
  local input, from_form = read_input()
  if not input then
    return answer(400, { message = from_form })
  end
  for field, value in pairs(fixed) do
    input[field] = value
  end
  local id = uuid.is_valid(input.id) and input.id:lower() or uuid.generate()
  input.id = nil
  local entity, err = store.update(function(document)
    if document[name][id] then
      return nil, { code = 3, name = "primary key violation",
                    message = "primary key violation on key '{id=\"" .. id .. "\"}'" }
    end
    return entities.put(document, name, id, input, nil, from_form)
  end)
  if not entity then
    return failed(err)
  end
  return answer(201, entities.represent(name, entity))
end


-- What a client may send again in a PUT: without what the host keeps for itself.
local function editable(entity)
  local copy = {}
  for key, value in pairs(entity) do
    if key ~= "ws_id" and key ~= "created_at" and key ~= "updated_at" and key ~= "id" then
      copy[key] = value
    end
  end
  return copy
end


local function write(name, wanted, fixed, is_patch, filter)
  local input, from_form = read_input()
  if not input then
    return answer(400, { message = from_form })
  end
  for field, value in pairs(fixed) do
    input[field] = value
  end
  input.id = nil
  local entity, err = store.update(function(document)
    local before = entities.find(document, name, wanted, filter)
    if is_patch then
      if not before then
        return nil, { code = 6 }
      end
      local merged = entities.merge(name, editable(before), input)
      return entities.put(document, name, before.id, merged, before, from_form)
    end
    local id = before and before.id or uuid.is_valid(wanted) and wanted:lower()
    if not id then
      -- PUT under a name creates the entity with that name.
      id = uuid.generate()
      input[entities[name].key] = input[entities[name].key] or wanted
    elseif before and before.id ~= wanted:lower() then
      input[entities[name].key] = input[entities[name].key] or wanted
    end
    return entities.put(document, name, id, input, before, from_form)
  end)
  if entity then
    return answer(200, entities.represent(name, entity))
  elseif err.code == 6 then
    return not_found()
  end
  return failed(err)
end


local function delete(name, wanted, filter)
  local ok, err = store.update(function(document)
    local entity = entities.find(document, name, wanted, filter)
    if not entity then
      return true
    end
    return entities.delete(document, name, entity.id)
  end)
  if not ok then
    return failed(err)
  end
  return answer(204)
end


-- --- one entity, one collection --------------------------------------------------------

local function serve_collection(name, fixed, filter, path)
  local method = ngx.req.get_method()
  if method == "GET" or method == "HEAD" then
    return list(name, filter, path)
  elseif method == "POST" then
    return create(name, fixed)
  end
  return answer(405, { message = "Method not allowed" })
end


local function serve_entity(name, wanted, fixed, filter)
  local method = ngx.req.get_method()
  local entity = entities.find(store.read(), name, wanted, filter)
  local is_read = method == "GET" or method == "HEAD"
  if entity and not filter(entity) or is_read and not entity then
    return not_found()
  elseif is_read then
    return answer(200, entities.represent(name, entity))
  elseif method == "PUT" then
    return write(name, wanted, fixed, false, filter)
  elseif method == "PATCH" then
    return write(name, wanted, fixed, true, filter)
  elseif method == "DELETE" then
    return delete(name, wanted, filter)
  end
  return answer(405, { message = "Method not allowed" })
end


local function everything()
  return true
end


-- The targets of an upstream with the health that the workers know.
local function serve_health(upstream)
  local words = balancer.health(balancer.build(store.read())[upstream.name])
  local data = json.array()
  for _, target in ipairs(in_order(store.read(), "targets", function(target)
    return target.upstream.id == upstream.id
  end)) do
    local shown = entities.represent("targets", target)
    shown.health = words[target.target] or "HEALTHCHECKS_OFF"
    data[#data + 1] = shown
  end
  return answer(200, { data = data, next = null, node_id = kong.node.get_id() })
end


local function serve_nested(parent_name, parent_wanted, element, wanted)
  local name = (NESTED[parent_name] or {})[element]
  local parent = entities.find(store.read(), parent_name, parent_wanted)
  if parent and parent_name == "upstreams" and element == "health" and not wanted then
    return serve_health(parent)
  end
  if not name or not parent then
    return not_found()
  end
  local field = PARENT_FIELD[parent_name]
  local function belongs(entity)
    return entity[field] and entity[field].id == parent.id
  end
  local fixed = { [field] = { id = parent.id } }
  if wanted then
    return serve_entity(name, wanted, fixed, belongs)
  end
  return serve_collection(name, fixed, belongs,
                          ("/%s/%s/%s"):format(parent_name, parent_wanted, element))
end


-- --- the root ------------------------------------------------------------------------

local function serve_root()
  local in_use, seen = json.array(), {}
  for _, plugin in pairs(store.read().plugins) do
    if not seen[plugin.name] then
      seen[plugin.name] = true
      in_use[#in_use + 1] = plugin.name
    end
  end
  return answer(200, {
    tagline = "nginx test host for the gateway's plugins, not Kong",
    version = settings.version,
    edition = "community",
    hostname = kong.node.get_hostname(),
    node_id = kong.node.get_id(),
    lua_version = jit.version,
    plugins = { available_on_server = plugins.available(), enabled_in_cluster = in_use },
    pids = { master = require("ngx.process").get_master_pid() },
    configuration = {
      database = "postgres",
      nginx_worker_processes = tostring(ngx.worker.count()),
      plugins = json.array(settings.plugins),
      router_flavor = "traditional_compatible",
      worker_state_update_frequency = settings.update_frequency,
    },
  })
end


local function serve_enabled_plugins()
  local names = json.array()
  for name in pairs(plugins.available()) do
    names[#names + 1] = name
  end
  table.sort(names)
  return answer(200, { enabled_plugins = names })
end


--- The content handler of the Admin API's port.
function admin.serve()
  ngx.ctx.host_phase = "admin_api"
  local elements = {}
  for element in ngx.var.request_uri:match("^[^?]*"):gmatch("[^/]+") do
    elements[#elements + 1] = ngx.unescape_uri(element)
  end
  local first, wanted, element, nested = unpack(elements)
  if not first then
    return serve_root()
  elseif first == "status" and not wanted then
    return answer(200, status.summary())
  elseif first == "plugins" and wanted == "enabled" then
    return serve_enabled_plugins()
  elseif not COLLECTIONS[first] or #elements > 4 then
    return not_found()
  elseif element then
    return serve_nested(first, wanted, element, nested)
  elseif wanted then
    return serve_entity(COLLECTIONS[first], wanted, {}, everything)
  end
  return serve_collection(COLLECTIONS[first], {}, everything, "/" .. first)
end


return admin
