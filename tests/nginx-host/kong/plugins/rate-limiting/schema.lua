--- Test equipment: the settings of Kong's rate-limiting plugin, as far as the stand-in goes.

local typedefs = require "kong.db.schema.typedefs"

local LIMIT = { type = "number", gt = 0 }


return {
  name = "rate-limiting",
  fields = {
    { protocols = typedefs.protocols_http },
    { config = {
        type = "record",
        fields = {
          { second = LIMIT },
          { minute = LIMIT },
          { hour = LIMIT },
          { day = LIMIT },
          { month = LIMIT },
          { year = LIMIT },
          { limit_by = { type = "string", default = "consumer",
                         one_of = { "consumer", "credential", "ip", "service", "header",
                                    "path" } } },
          { header_name = typedefs.header_name },
          { path = typedefs.path },
          -- Kong also knows cluster and redis; the host only counts on its own.
          { policy = { type = "string", default = "local", one_of = { "local" } } },
          { fault_tolerant = { type = "boolean", required = true, default = true } },
          { hide_client_headers = { type = "boolean", required = true, default = false } },
          { error_code = { type = "number", default = 429, gt = 0 } },
          { error_message = { type = "string", default = "API rate limit exceeded" } },
          { sync_rate = { type = "number", required = true, default = -1 } },
        },
    } },
  },
  entity_checks = {
    { at_least_one_of = { "config.second", "config.minute", "config.hour", "config.day",
                          "config.month", "config.year" } },
  },
}
