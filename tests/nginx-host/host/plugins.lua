--- Loads plugins, and finds for each call which of them run with which settings.
--
-- Plugins run in the order of their priority. For one plugin at most one instance
-- applies to a call, the most specific: route + service + consumer, route +
-- consumer, service + consumer, route + service, consumer, route, service, global.
-- The choice is made once, in access, when the plugin's turn comes, so plugins
-- after key-auth see the consumer; header_filter, body_filter and log then run
-- with the same instance, also when an earlier plugin answered. A call that never
-- reached that point (no route, malformed) runs the global instances only.
-- Settings of a plugin become one table that stays the same until they change.

local settings = require "host.settings"

local plugins = {}

local BUNDLED = { "pre-function", "key-auth", "request-transformer", "rate-limiting",
                  "prometheus", "http-log" }

-- Phases that run later with what access chose.
local LATER = { "header_filter", "body_filter", "log" }

-- Phases in which the global instances run: rewrite, before there is a route, and the
-- later ones of calls that did not get as far as access.
local GLOBAL = { "rewrite", "header_filter", "body_filter", "log" }

-- name → { name, handler, definition }, and the same in order of priority
local loaded, ordered = {}, {}


-- --- loading ---------------------------------------------------------------------

-- A plugin's schema file lists fields of the plugin entity, `config` among them.
local function read_definition(name)
  local file = require("kong.plugins." .. name .. ".schema")
  local overrides = {}
  for _, item in ipairs(file.fields) do
    local field_name, field = next(item)
    if field_name == "config" then
      field = setmetatable({ required = true }, { __index = field })
    end
    overrides[field_name] = field
  end
  return { overrides = overrides, entity_checks = file.entity_checks }
end


local function load_one(name)
  local handler = require("kong.plugins." .. name .. ".handler")
  if type(handler.PRIORITY) ~= "number" or type(handler.VERSION) ~= "string" then
    error("plugin '" .. name .. "' has no PRIORITY or no VERSION")
  end
  if handler.response then
    error("plugin '" .. name .. "' has a response phase, which this host does not have")
  end
  local plugin = { name = name, handler = handler, definition = read_definition(name) }
  loaded[name] = plugin
  ordered[#ordered + 1] = plugin
  kong.configuration.loaded_plugins[name] = true
end


--- Loads the plugins that KONG_PLUGINS names, in the master.
function plugins.load(names)
  for _, name in ipairs(names) do
    if name == "bundled" then
      for _, bundled in ipairs(BUNDLED) do
        load_one(bundled)
      end
    elseif not loaded[name] then
      load_one(name)
    end
  end
  table.sort(ordered, function(a, b)
    if a.handler.PRIORITY ~= b.handler.PRIORITY then
      return a.handler.PRIORITY > b.handler.PRIORITY
    end
    return a.name < b.name
  end)
end


--- What the Admin API must know to check a plugin's settings; nil, message.
function plugins.definition(name)
  local plugin = loaded[name]
  if not plugin then
    return nil, ("plugin '%s' not enabled; add it to the 'plugins' configuration property")
                :format(tostring(name))
  end
  return plugin.definition
end


--- name → { version, priority }, for GET / of the Admin API.
function plugins.available()
  local all = {}
  for name, plugin in pairs(loaded) do
    all[name] = { version = plugin.handler.VERSION, priority = plugin.handler.PRIORITY }
  end
  return all
end


-- --- running one handler -----------------------------------------------------------

local function enter(ctx, plugin, config)
  ctx.host_plugin = plugin.handler
  ctx.host_plugin_name = plugin.name
  ctx.host_plugin_id = config and config.__plugin_id
end


local function leave(ctx)
  ctx.host_plugin_name = nil
end


function plugins.init_worker()
  ngx.ctx.host_phase = "init_worker"
  for _, plugin in ipairs(ordered) do
    if plugin.handler.init_worker then
      enter(ngx.ctx, plugin)
      local ok, err = pcall(plugin.handler.init_worker, plugin.handler)
      if not ok then
        ngx.log(ngx.ERR, "failed to execute the \"init_worker\" handler for plugin \"",
                plugin.name, "\": ", err)
      end
      leave(ngx.ctx)
    end
  end
end


--- Calls `configure` of the plugins that have one with all their settings.
function plugins.configure(instances)
  for _, plugin in ipairs(ordered) do
    if plugin.handler.configure then
      plugin.handler:configure(instances.all[plugin.name])
    end
  end
end


-- --- which instance applies ----------------------------------------------------------

local function scope_key(route_id, service_id, consumer_id)
  return (route_id or "") .. ":" .. (service_id or "") .. ":" .. (consumer_id or "")
end


local function id_of(reference)
  return reference and reference.id
end


local function config_of(instance)
  local config = instance.config or {}
  config.__plugin_id = instance.id
  config.__key__ = instance.id
  config.__ws_id = settings.workspace
  config.plugin_instance_name = instance.instance_name
  config.route_id = id_of(instance.route)
  config.service_id = id_of(instance.service)
  config.consumer_id = id_of(instance.consumer)
  return config
end


local function global_instances(scoped, phase)
  local list = {}
  for _, plugin in ipairs(ordered) do
    local config = scoped[plugin.name] and scoped[plugin.name][scope_key()]
    if config and plugin.handler[phase] then
      list[#list + 1] = { plugin = plugin, config = config }
    end
  end
  return list
end


--- The instances of this state of the document. scoped: plugin → scope → config;
--- all: plugin → list of configs; global: phase → what runs there.
function plugins.build(document)
  local instances = { scoped = {}, all = {}, global = {} }
  for _, instance in pairs(document.plugins) do
    if instance.enabled ~= false and loaded[instance.name] then
      local config = config_of(instance)
      local scoped = instances.scoped[instance.name] or {}
      scoped[scope_key(config.route_id, config.service_id, config.consumer_id)] = config
      instances.scoped[instance.name] = scoped
      local all = instances.all[instance.name] or {}
      all[#all + 1] = config
      instances.all[instance.name] = all
    end
  end
  for _, phase in ipairs(GLOBAL) do
    instances.global[phase] = global_instances(instances.scoped, phase)
  end
  return instances
end


local function choose(scoped, call)
  local route, service, consumer = id_of(call.route), id_of(call.service), id_of(call.consumer)
  return route and service and consumer and scoped[scope_key(route, service, consumer)]
      or route and consumer and scoped[scope_key(route, nil, consumer)]
      or service and consumer and scoped[scope_key(nil, service, consumer)]
      or route and service and scoped[scope_key(route, service, nil)]
      or consumer and scoped[scope_key(nil, nil, consumer)]
      or route and scoped[scope_key(route, nil, nil)]
      or service and scoped[scope_key(nil, service, nil)]
      or scoped[scope_key()]
end


-- --- running -------------------------------------------------------------------------

-- Runs access in a coroutine of its own, so that kong.response.exit can leave it
-- for good from any depth.
local function run_access(ctx, plugin, config)
  enter(ctx, plugin, config)
  local thread = coroutine.create(plugin.handler.access)
  local ok, err = coroutine.resume(thread, plugin.handler, config)
  if not ok then
    kong.log.err(err)
    local call = ctx.host
    call.unexpected = true
    call.delayed = { status = 500, message = "An unexpected error occurred" }
  end
  leave(ctx)
end


--- Chooses the instances of all plugins and runs access of each until one answers.
function plugins.collect_and_run_access(instances)
  local ctx = ngx.ctx
  local call = ctx.host
  local collected = {}
  for _, phase in ipairs(LATER) do
    collected[phase] = {}
  end
  call.collected = collected
  call.delays_answers = true
  for _, plugin in ipairs(ordered) do
    local scoped = instances.scoped[plugin.name]
    local config = scoped and choose(scoped, call)
    if config then
      for _, phase in ipairs(LATER) do
        if plugin.handler[phase] then
          local list = collected[phase]
          list[#list + 1] = { plugin = plugin, config = config }
        end
      end
      if plugin.handler.access and not call.delayed then
        run_access(ctx, plugin, config)
      end
    end
  end
  call.delays_answers = nil
end


--- Runs a phase of the plugins chosen in access, or of the global ones.
function plugins.run(phase, instances)
  local ctx = ngx.ctx
  local lists = ctx.host.collected or instances.global
  for _, item in ipairs(lists[phase]) do
    enter(ctx, item.plugin, item.config)
    item.plugin.handler[phase](item.plugin.handler, item.config)
    leave(ctx)
  end
end


return plugins
