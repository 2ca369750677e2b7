--- Test equipment: the settings of Kong's request-transformer plugin, as far as the stand-in goes.

local typedefs = require "kong.db.schema.typedefs"


local function list(pattern)
  return {
    type = "array", required = true, default = {},
    elements = { type = "string", match = pattern },
  }
end


-- Bodies and query strings are accepted and must be empty: the host changes only
-- headers.
local NONE = { type = "array", required = true, default = {}, len_max = 0,
               elements = { type = "string" } }

local function record(pattern)
  return {
    type = "record",
    fields = { { body = NONE }, { headers = list(pattern) }, { querystring = NONE } },
  }
end

local NAME = "^[%w%-_]+$"
local PAIR = "^[%w%-_]+:.*$"


return {
  name = "request-transformer",
  fields = {
    { protocols = typedefs.protocols },
    { config = {
        type = "record",
        fields = {
          { http_method = typedefs.http_method },
          { remove = record(NAME) },
          { rename = record(PAIR) },
          { replace = record(PAIR) },
          { add = record(PAIR) },
          { append = record(PAIR) },
        },
    } },
  },
}
