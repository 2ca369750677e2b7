--- Test equipment: the shared type definitions that plugin schemas ask Kong for.
-- Only those that gateway plugins commonly use; see ../../../README.md.

local null = ngx.null

local HTTP_PROTOCOLS = { "grpc", "grpcs", "http", "https" }


-- A definition can be called with a table of changes, as in Kong.
local function define(field)
  return setmetatable(field, {
    __call = function(self, changes)
      local changed = {}
      for key, value in pairs(self) do
        changed[key] = value
      end
      for key, value in pairs(changes) do
        changed[key] = value
      end
      return define(changed)
    end,
  })
end


local function is_url(text)
  return require("host.uri").parse(text)
end


local typedefs = {}

typedefs.protocols = define {
  type = "set", required = true, default = HTTP_PROTOCOLS,
  elements = { type = "string", one_of = HTTP_PROTOCOLS },
}
typedefs.protocols_http = typedefs.protocols

typedefs.no_consumer = define { type = "foreign", reference = "consumers", eq = null }
typedefs.no_route = define { type = "foreign", reference = "routes", eq = null }
typedefs.no_service = define { type = "foreign", reference = "services", eq = null }

typedefs.uuid = define { type = "string", uuid = true, auto = true }
typedefs.auto_timestamp_s = define { type = "integer", timestamp = true, auto = true }
typedefs.header_name = define { type = "string", match = "^[%w%-_]+$" }
typedefs.http_method = define { type = "string", match = "^%u+$" }
typedefs.host = define { type = "string", match = "^[%w%.%-_:%[%]]+$" }
typedefs.port = define { type = "integer", between = { 0, 65535 } }
typedefs.timeout = define { type = "integer", between = { 0, 2 ^ 31 - 2 } }
typedefs.url = define { type = "string", custom_validator = is_url }
typedefs.path = define {
  type = "string", starts_with = "/",
  match_none = { { pattern = "//", err = "must not have empty segments" } },
}
typedefs.tags = define { type = "set", elements = { type = "string", match = "^[^,/]+$" } }
typedefs.utf8_name = define {
  type = "string",
  custom_validator = function(name)
    if name:match("^[%w%.%-_~\128-\244]+$") then
      return true
    end
    return nil, "invalid value '" .. name .. "': the only accepted ascii characters are "
                .. "alphanumerics or ., -, _, and ~"
  end,
}

typedefs.queue = define {
  type = "record",
  fields = {
    { max_batch_size = { type = "integer", default = 1, between = { 1, 1000000 } } },
    { max_coalescing_delay = { type = "number", default = 1, between = { 0, 3600 } } },
    { max_entries = { type = "integer", default = 10000, between = { 1, 1000000 } } },
    { max_bytes = { type = "integer" } },
    { max_retry_time = { type = "number", default = 60 } },
    { initial_retry_delay = { type = "number", default = 0.01, between = { 0.001, 1000000 } } },
    { max_retry_delay = { type = "number", default = 60, between = { 0.001, 1000000 } } },
    { concurrency_limit = { type = "integer", default = 1, one_of = { -1, 1 } } },
  },
}

return typedefs
