--- Test equipment: stands in for Kong's key-auth plugin.
-- Looks for the key under each of key_names, in the places that are switched on;
-- two of the same name are refused. Answers and headers as recorded in
-- tests/fixtures/kong/entries/kong-*-401.json.

local json = require "host.json"
local meta = require "kong.meta"
local store = require "host.store"


local key_auth = {
  PRIORITY = 1250,
  VERSION = meta.version,
}


local index, index_version

-- The credential with this key, from the newest state: keys take effect at once.
local function find_credential(key)
  if index_version ~= store.version() then
    index = {}
    for _, credential in pairs(store.read().keyauth_credentials) do
      index[credential.key] = credential
    end
    index_version = store.version()
  end
  local credential = index[key]
  if credential and credential.ttl
     and credential.created_at + credential.ttl <= ngx.time()
  then
    return nil
  end
  return credential
end


local function body_arguments()
  local body = kong.request.get_body()
  return type(body) == "table" and body or {}
end


local function hide(name, config)
  kong.service.request.clear_query_arg(name)
  kong.service.request.clear_header(name)
  if config.key_in_body then
    local body = body_arguments()
    body[name] = nil
    kong.service.request.set_raw_body(json.encode(body))
  end
end


--- The key of this request; nil and a message.
local function find_key(config)
  local headers = kong.request.get_headers()
  local query = kong.request.get_query()
  for _, name in ipairs(config.key_names) do
    local value = config.key_in_header and headers[name] or nil
    if not value and config.key_in_query then
      value = query[name]
    end
    if not value and config.key_in_body then
      value = body_arguments()[name]
    end
    if type(value) == "table" then
      return nil, "Duplicate API key found"
    elseif type(value) == "string" then
      if config.hide_credentials then
        hide(name, config)
      end
      if value ~= "" then
        return value
      end
      break
    end
  end
  return nil, "No API key found in request"
end


local function set_or_clear(name, value)
  if value then
    kong.service.request.set_header(name, value)
  else
    kong.service.request.clear_header(name)
  end
end


local function tell_upstream(consumer, credential)
  set_or_clear("X-Consumer-ID", consumer.id)
  set_or_clear("X-Consumer-Custom-ID", consumer.custom_id)
  set_or_clear("X-Consumer-Username", consumer.username)
  set_or_clear("X-Credential-Identifier", credential and credential.id)
  set_or_clear("X-Anonymous-Consumer", not credential and "true" or nil)
end


local function authenticate(config)
  local key, err = find_key(config)
  if not key then
    return nil, err
  end
  local credential = find_credential(key)
  if not credential then
    return nil, "Unauthorized"
  end
  local consumer = store.read().consumers[credential.consumer.id]
  kong.client.authenticate(consumer, credential)
  tell_upstream(consumer, credential)
  return true
end


local function use_anonymous(wanted)
  local consumer = require("host.entities").find(store.read(), "consumers", wanted)
  if not consumer then
    return kong.response.error(500, "An unexpected error occurred")
  end
  kong.client.authenticate(consumer, nil)
  tell_upstream(consumer)
end


function key_auth:access(config)
  if not config.run_on_preflight and kong.request.get_method() == "OPTIONS" then
    return
  end
  if config.anonymous and kong.client.get_credential() then
    return
  end
  local ok, err = authenticate(config)
  if ok then
    return
  end
  if config.anonymous then
    return use_anonymous(config.anonymous)
  end
  return kong.response.error(401, err, {
    ["WWW-Authenticate"] = config.realm and ('Key realm="%s"'):format(config.realm) or "Key",
  })
end


return key_auth
