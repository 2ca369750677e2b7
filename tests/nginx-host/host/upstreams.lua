--- The entities upstream and target: fields as in Kong 3.9.

local typedefs = require "kong.db.schema.typedefs"


local upstreams = {}

local SECONDS = { type = "number", between = { 0, 65535 } }
local COUNT = { type = "integer", default = 0, between = { 0, 255 } }

local function seconds(default)
  return { type = SECONDS.type, between = SECONDS.between, default = default }
end

local function statuses(...)
  return { type = "array", default = { ... },
           elements = { type = "integer", between = { 100, 999 } } }
end

local CHECK_TYPE = { type = "string", default = "http",
                     one_of = { "tcp", "http", "https", "grpc", "grpcs" } }

local ACTIVE = {
  { type = CHECK_TYPE },
  { timeout = seconds(1) },
  { concurrency = { type = "integer", default = 10, between = { 1, 2 ^ 31 } } },
  { http_path = typedefs.path { default = "/" } },
  { https_sni = { type = "string" } },
  { https_verify_certificate = { type = "boolean", required = true, default = true } },
  { headers = { type = "map" } },
  { healthy = { type = "record", fields = {
      { interval = seconds(0) },
      { http_statuses = statuses(200, 302) },
      { successes = COUNT },
    } } },
  { unhealthy = { type = "record", fields = {
      { interval = seconds(0) },
      { http_statuses = statuses(429, 404, 500, 501, 502, 503, 504, 505) },
      { tcp_failures = COUNT },
      { timeouts = COUNT },
      { http_failures = COUNT },
    } } },
}

local PASSIVE = {
  { type = CHECK_TYPE },
  { healthy = { type = "record", fields = {
      { http_statuses = statuses(200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301,
                                 302, 303, 304, 305, 306, 307, 308) },
      { successes = COUNT },
    } } },
  { unhealthy = { type = "record", fields = {
      { http_statuses = statuses(429, 500, 503) },
      { tcp_failures = COUNT },
      { timeouts = COUNT },
      { http_failures = COUNT },
    } } },
}

local HASH_ON = { type = "string", default = "none",
                  one_of = { "none", "consumer", "ip", "header", "cookie", "path", "query_arg",
                             "uri_capture" } }


-- A name, for the router to tell it from an address.
local function is_name(name)
  if name:match("^%d+%.%d+%.%d+%.%d+$") then
    return nil, "Invalid name ('" .. name .. "'); no ip addresses allowed"
  elseif name:find(":", 1, true) then
    return nil, "Invalid name ('" .. name .. "'); no port allowed"
  elseif not name:match("^[%w_.-]+$") then
    return nil, "Invalid name ('" .. name .. "'); must be a valid hostname"
  end
  return true
end


upstreams.upstreams = {
  key = "name",
  unique = { "name" },
  fields = {
    { name = { type = "string", required = true, custom_validator = is_name } },
    { algorithm = { type = "string", default = "round-robin",
                    one_of = { "consistent-hashing", "least-connections", "round-robin",
                               "latency" } } },
    { hash_on = HASH_ON },
    { hash_fallback = HASH_ON },
    { hash_on_header = typedefs.header_name },
    { hash_fallback_header = typedefs.header_name },
    { hash_on_cookie = { type = "string" } },
    { hash_on_cookie_path = typedefs.path { default = "/" } },
    { hash_on_query_arg = { type = "string", len_min = 1 } },
    { hash_fallback_query_arg = { type = "string", len_min = 1 } },
    { hash_on_uri_capture = { type = "string", len_min = 1 } },
    { hash_fallback_uri_capture = { type = "string", len_min = 1 } },
    { slots = { type = "integer", default = 10000, between = { 10, 2 ^ 16 } } },
    { healthchecks = { type = "record", fields = {
        { active = { type = "record", fields = ACTIVE } },
        { passive = { type = "record", fields = PASSIVE } },
        { threshold = { type = "number", default = 0, between = { 0, 100 } } },
      } } },
    { host_header = { type = "string" } },
    { client_certificate = { type = "foreign", reference = "certificates" } },
    { use_srv_name = { type = "boolean", default = false } },
  },
}

upstreams.targets = {
  key = "target",
  unique = {},
  fields = {
    { upstream = { type = "foreign", reference = "upstreams", required = true } },
    { target = { type = "string", required = true,
                 match = "^[%w_.-]+:?%d*$" } },
    { weight = { type = "integer", default = 100, between = { 0, 65535 } } },
  },
}


--- A target with the port that Kong adds where there is none.
function upstreams.with_port(target)
  return target:find(":%d+$") and target or target .. ":8000"
end


return upstreams
