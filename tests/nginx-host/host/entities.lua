--- The entities of the Admin API and their rules: fields, unique names, what a
--- deletion takes along, what a foreign key must point to.
--
-- Errors are tables as Kong answers them: code, name, message, fields. Codes:
-- 2 schema violation, 4 foreign key violation, 5 unique constraint violation.

local json = require "host.json"
local schema = require "host.schema"
local settings = require "host.settings"
local typedefs = require "kong.db.schema.typedefs"
local upstreams = require "host.upstreams"
local uri = require "host.uri"
local uuid = require "host.uuid"

local null = json.null

local entities = {}


-- --- definitions -------------------------------------------------------------------

local PROTOCOL = { "http", "https" }

local function foreign(name, more)
  local field = { type = "foreign", reference = name }
  for key, value in pairs(more or {}) do
    field[key] = value
  end
  return field
end


local function is_router_path(path)
  if path:sub(1, 1) == "~" then
    local _, _, err = ngx.re.find("", path:sub(2), "aj")
    if err then
      return nil, ("invalid regex: '%s' (PCRE returned: %s)"):format(path:sub(2), err)
    end
  elseif uri.normalize(path) ~= path then
    return nil, "non-normalized path, consider use '" .. uri.normalize(path) .. "' instead"
  end
  return true
end

local ROUTER_PATHS = {
  type = "array",
  elements = {
    type = "string",
    match_any = {
      patterns = { "^/", "^~/" },
      err = "should start with: / (fixed path) or ~/ (regex path)",
    },
    match_none = { { pattern = "//", err = "must not have empty segments" } },
    custom_validator = is_router_path,
  },
}

local TIMEOUT = { type = "integer", default = 60000, between = { 1, 2 ^ 31 - 2 } }

local STAMPS = {
  { id = typedefs.uuid },
  { created_at = typedefs.auto_timestamp_s },
  { updated_at = typedefs.auto_timestamp_s },
  { tags = typedefs.tags },
}

local function with_stamps(fields)
  local all = {}
  for _, item in ipairs(STAMPS) do
    all[#all + 1] = item
  end
  for _, item in ipairs(fields) do
    all[#all + 1] = item
  end
  return all
end


entities.services = {
  key = "name",
  unique = { "name" },
  fields = with_stamps {
    { name = typedefs.utf8_name },
    { retries = { type = "integer", default = 5, between = { 0, 32767 } } },
    { protocol = { type = "string", required = true, default = "http", one_of = PROTOCOL } },
    { host = typedefs.host { required = true } },
    { port = typedefs.port { required = true, default = 80 } },
    { path = typedefs.path },
    { connect_timeout = TIMEOUT },
    { write_timeout = TIMEOUT },
    { read_timeout = TIMEOUT },
    { client_certificate = foreign("certificates") },
    { tls_verify = { type = "boolean" } },
    { tls_verify_depth = { type = "integer" } },
    { ca_certificates = { type = "array", elements = { type = "string" } } },
    { enabled = { type = "boolean", required = true, default = true } },
  },
}

entities.routes = {
  key = "name",
  unique = { "name" },
  fields = with_stamps {
    { name = typedefs.utf8_name },
    { protocols = { type = "set", required = true, len_min = 1, default = PROTOCOL,
                    elements = { type = "string", one_of = PROTOCOL } } },
    { https_redirect_status_code = { type = "integer", required = true, default = 426 } },
    { strip_path = { type = "boolean", required = true, default = true } },
    { preserve_host = { type = "boolean", required = true, default = false } },
    { request_buffering = { type = "boolean", required = true, default = true } },
    { response_buffering = { type = "boolean", required = true, default = true } },
    { service = foreign("services") },
    { snis = { type = "set", elements = { type = "string" } } },
    { sources = { type = "set", elements = { type = "map" } } },
    { destinations = { type = "set", elements = { type = "map" } } },
    { methods = { type = "set", elements = typedefs.http_method } },
    { hosts = { type = "array", elements = { type = "string" } } },
    { paths = ROUTER_PATHS },
    { headers = { type = "map" } },
    { regex_priority = { type = "integer", default = 0 } },
    { path_handling = { type = "string", default = "v0", one_of = { "v0", "v1" } } },
  },
}

entities.consumers = {
  key = "username",
  unique = { "username", "custom_id" },
  fields = with_stamps {
    { username = { type = "string" } },
    { custom_id = { type = "string" } },
  },
  entity_checks = { { at_least_one_of = { "custom_id", "username" } } },
}

entities.keyauth_credentials = {
  key = "key",
  unique = { "key" },
  fields = {
    { id = typedefs.uuid },
    { created_at = typedefs.auto_timestamp_s },
    { tags = typedefs.tags },
    { consumer = foreign("consumers", { required = true }) },
    { key = { type = "string" } },
    { ttl = { type = "integer" } },
  },
}

entities.plugins = {
  key = "instance_name",
  unique = { "instance_name" },
  fields = with_stamps {
    { name = { type = "string", required = true } },
    { instance_name = typedefs.utf8_name },
    { route = foreign("routes") },
    { service = foreign("services") },
    { consumer = foreign("consumers") },
    { config = { type = "map" } },
    { protocols = typedefs.protocols },
    { enabled = { type = "boolean", required = true, default = true } },
  },
}

for _, name in ipairs({ "upstreams", "targets" }) do
  local definition = upstreams[name]
  entities[name] = { key = definition.key, unique = definition.unique,
                     fields = with_stamps(definition.fields) }
end

-- What references what, and whether a deletion takes it along.
local REFERENCES = {
  { from = "routes", field = "service", to = "services", cascade = false },
  { from = "plugins", field = "service", to = "services", cascade = true },
  { from = "plugins", field = "route", to = "routes", cascade = true },
  { from = "plugins", field = "consumer", to = "consumers", cascade = true },
  { from = "keyauth_credentials", field = "consumer", to = "consumers", cascade = true },
  { from = "targets", field = "upstream", to = "upstreams", cascade = true },
}


-- --- errors ------------------------------------------------------------------------

local function flatten(errors, prefix, lines)
  local names = {}
  for name in pairs(errors) do
    names[#names + 1] = tostring(name)
  end
  table.sort(names)
  for _, name in ipairs(names) do
    local message = errors[name] or errors[tonumber(name)]
    if name == "@entity" then
      for _, line in ipairs(message) do
        lines[#lines + 1] = line
      end
    elseif type(message) == "table" then
      flatten(message, prefix .. name .. ".", lines)
    else
      lines[#lines + 1] = prefix .. name .. ": " .. message
    end
  end
  return lines
end


local function schema_violation(fields)
  local lines = flatten(fields, "", {})
  local count = #lines == 1 and "schema violation" or (#lines .. " schema violations")
  return {
    code = 2,
    name = "schema violation",
    message = ("%s (%s)"):format(count, table.concat(lines, "; ")),
    fields = fields,
  }
end


-- Kong prints the values the way its Lua library writes tables.
local function pretty(fields)
  local names = {}
  for name in pairs(fields) do
    names[#names + 1] = name
  end
  table.sort(names)
  local parts = {}
  for _, name in ipairs(names) do
    local value = fields[name]
    if value == null then
      value = "null"
    elseif type(value) == "table" then
      value = pretty(value)
    else
      value = '"' .. tostring(value) .. '"'
    end
    parts[#parts + 1] = name .. "=" .. value
  end
  return "{" .. table.concat(parts, ",") .. "}"
end


local function unique_violation(fields)
  return {
    code = 5,
    name = "unique constraint violation",
    message = "UNIQUE violation detected on '" .. pretty(fields) .. "'",
    fields = fields,
  }
end


-- --- rules over the whole document ---------------------------------------------------

local function check_references(document, name, entity)
  for _, reference in ipairs(REFERENCES) do
    local value = reference.from == name and entity[reference.field]
    if value then
      local target
      if value.id then
        target = document[reference.to][value.id]
      else
        target = entities.find(document, reference.to, value.name or value.username)
      end
      if not target then
        return {
          code = 4,
          name = "foreign key violation",
          message = ("the foreign key '%s' does not reference an existing '%s' entity.")
                    :format(pretty(value), reference.to),
          fields = { [reference.field] = value },
        }
      end
      entity[reference.field] = { id = target.id }
    end
  end
end


local function check_unique(document, name, entity)
  for _, field in ipairs(entities[name].unique) do
    for id, other in pairs(document[name]) do
      if entity[field] ~= nil and other[field] == entity[field] and id ~= entity.id then
        return unique_violation({ [field] = entity[field] })
      end
    end
  end
end


local function id_of(reference)
  return reference and reference.id
end

-- One instance of a plugin for each combination of route, service, consumer.
local function check_plugin_scope(document, plugin)
  for id, other in pairs(document.plugins) do
    if id ~= plugin.id and other.name == plugin.name
       and id_of(other.route) == id_of(plugin.route)
       and id_of(other.service) == id_of(plugin.service)
       and id_of(other.consumer) == id_of(plugin.consumer)
    then
      return unique_violation({
        name = plugin.name,
        route = plugin.route or null,
        service = plugin.service or null,
        consumer = plugin.consumer or null,
      })
    end
  end
end


-- An upstream has each target once.
local function check_target(document, target)
  for id, other in pairs(document.targets) do
    if id ~= target.id and other.target == target.target
       and other.upstream.id == target.upstream.id
    then
      return unique_violation({ target = target.target, upstream = target.upstream })
    end
  end
end


local function plugin_definition(plugin)
  return require("host.plugins").definition(plugin.name)
end


-- The fields of plugins, with the settings the plugin's own schema knows.
local function definition_of(name, input)
  local definition = entities[name]
  if name ~= "plugins" then
    return definition
  end
  local own, err = plugin_definition(input)
  if not own then
    return nil, schema_violation({ name = err })
  end
  local fields = {}
  for _, item in ipairs(definition.fields) do
    local field_name = next(item)
    fields[#fields + 1] = own.overrides[field_name] and { [field_name] = own.overrides[field_name] }
                          or item
  end
  return { fields = fields, entity_checks = own.entity_checks }
end


-- `url` stands for protocol, host, port and path of a service.
local function expand_url(input)
  if input.url == nil or input.url == null then
    return
  end
  local parsed = uri.parse(tostring(input.url)) or {}
  input.url = nil
  input.protocol = parsed.scheme
  input.host = parsed.host
  input.port = parsed.port
  input.path = parsed.path and parsed.path ~= "/" and parsed.path or null
end


-- --- operations ------------------------------------------------------------------------

--- The entity with this id, or with this name (username, key, …); of those that
--- `belongs` lets pass, where it is given.
function entities.find(document, name, wanted, belongs)
  if not wanted then
    return nil
  end
  local found = document[name][wanted:lower()]
  if found then
    return found
  end
  local key = entities[name].key
  for _, entity in pairs(document[name]) do
    if entity[key] == wanted and (not belongs or belongs(entity)) then
      return entity
    end
  end
end


--- Validates `input` and puts it under `id`; the stored entity, or nil, err.
--- `before` is the entity that it replaces.
function entities.put(document, name, id, input, before, from_form)
  if name == "services" then
    expand_url(input)
  end
  if type(input.name) ~= "string" and name == "plugins" then
    return nil, schema_violation({ name = "required field missing" })
  end
  local definition, entity, err
  definition, err = definition_of(name, input)
  if not definition then
    return nil, err
  end
  entity, err = schema.validate(definition, input, from_form)
  if not entity then
    return nil, schema_violation(err)
  end

  if name == "targets" then
    entity.target = upstreams.with_port(entity.target)
  end
  entity.id = id
  entity.created_at = before and before.created_at or ngx.time()
  if name ~= "keyauth_credentials" then
    entity.updated_at = ngx.time()
  elseif not entity.key then
    entity.key = uuid.random_hex(16)
  end
  -- As Kong has it: 0 takes the end of a key away.
  if entity.ttl == 0 then
    entity.ttl = nil
  end
  if name == "services" or name == "routes" then
    entity.ws_id = settings.workspace
  end

  err = check_references(document, name, entity) or check_unique(document, name, entity)
        or (name == "plugins" and check_plugin_scope(document, entity))
        or (name == "targets" and check_target(document, entity))
  if err then
    return nil, err
  end
  document[name][id] = entity
  return entity
end


local function merge(fields, before, changes)
  local merged = {}
  for key, value in pairs(before) do
    merged[key] = value
  end
  for key, value in pairs(changes) do
    local field = schema.field(fields, key)
    if field and field.type == "record" and type(value) == "table"
       and type(merged[key]) == "table"
    then
      merged[key] = merge(field.fields, merged[key], value)
    else
      merged[key] = value
    end
  end
  return merged
end


--- What a PATCH makes of an entity: settings it names change, others stay; lists and
--- maps are replaced as a whole.
function entities.merge(name, before, changes)
  local definition = definition_of(name, before) or entities[name]
  return merge(definition.fields, before, changes)
end


--- Deletes the entity and what belongs to it; true, or nil, err.
function entities.delete(document, name, id)
  for _, reference in ipairs(REFERENCES) do
    if reference.to == name then
      for other_id, other in pairs(document[reference.from]) do
        if id_of(other[reference.field]) == id then
          if not reference.cascade then
            return nil, {
              code = 4,
              name = "foreign key violation",
              message = ("an existing '%s' entity references this '%s' entity")
                        :format(reference.from, name),
              fields = { ["@referenced_by"] = reference.from },
            }
          end
          document[reference.from][other_id] = nil
        end
      end
    end
  end
  document[name][id] = nil
  return true
end


--- The entity as the Admin API shows it.
function entities.represent(name, entity)
  return schema.represent(definition_of(name, entity) or entities[name], entity)
end


return entities
