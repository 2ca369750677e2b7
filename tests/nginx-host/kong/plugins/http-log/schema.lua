--- Test equipment: the settings of Kong's http-log plugin, as far as the stand-in goes.

local typedefs = require "kong.db.schema.typedefs"


return {
  name = "http-log",
  fields = {
    { protocols = typedefs.protocols },
    { config = {
        type = "record",
        fields = {
          { http_endpoint = typedefs.url { required = true } },
          { method = { type = "string", default = "POST", one_of = { "POST", "PUT", "PATCH" } } },
          { content_type = { type = "string", default = "application/json",
                             one_of = { "application/json", "application/json; charset=utf-8" } } },
          { timeout = { type = "number", default = 10000 } },
          { keepalive = { type = "number", default = 60000 } },
          { retry_count = { type = "integer" } },
          { queue_size = { type = "integer" } },
          { flush_timeout = { type = "number" } },
          { headers = {
              type = "map",
              keys = typedefs.header_name {
                match_none = {
                  { pattern = "^[Hh][Oo][Ss][Tt]$", err = "cannot contain 'Host' header" },
                  { pattern = "^[Cc][Oo][Nn][Tt][Ee][Nn][Tt]%-[Ll][Ee][Nn][Gg][Tt][Hh]$",
                    err = "cannot contain 'Content-Length' header" },
                  { pattern = "^[Cc][Oo][Nn][Tt][Ee][Nn][Tt]%-[Tt][Yy][Pp][Ee]$",
                    err = "cannot contain 'Content-Type' header" },
                },
              },
              values = { type = "string" },
          } },
          { queue = typedefs.queue },
          { custom_fields_by_lua = { type = "map" } },
        },
    } },
  },
}
