--- Test equipment: the settings of Kong's pre-function plugin, as far as the stand-in goes.

local typedefs = require "kong.db.schema.typedefs"


local function parses(text)
  local _, err = loadstring(text)
  if err then
    return false, "error parsing pre-function: " .. err
  end
  return true
end


local FUNCTIONS = {
  type = "array", required = true, default = {},
  elements = { type = "string", custom_validator = parses },
}


return {
  name = "pre-function",
  fields = {
    { consumer = typedefs.no_consumer },
    { protocols = typedefs.protocols },
    { config = {
        type = "record",
        fields = {
          { certificate = FUNCTIONS },
          { rewrite = FUNCTIONS },
          { access = FUNCTIONS },
          { header_filter = FUNCTIONS },
          { body_filter = FUNCTIONS },
          { log = FUNCTIONS },
        },
    } },
  },
  entity_checks = {
    { at_least_one_of = { "config.certificate", "config.rewrite", "config.access",
                          "config.header_filter", "config.body_filter", "config.log" } },
  },
}
