local models = require "llm_gateway.models"
local typedefs = require "kong.db.schema.typedefs"


-- Nobody can ask for longer ones, see llm_gateway.request.
local NAME = { type = "string", len_min = 1, len_max = 200 }

local function names(description)
  return { description = description, type = "array", required = true,
           default = {}, elements = NAME }
end


return {
  name = "llm-router",
  fields = {
    { protocols = typedefs.protocols_http },
    { consumer = typedefs.no_consumer },
    { config = {
        type = "record",
        fields = {
          { models = {
              description = "The models of this gateway. Without any, all "
                            .. "calls go to the service's address.",
              type = "array",
              required = true,
              default = {},
              elements = {
                type = "record",
                fields = {
                  { name = {
                      description = "What people call it.",
                      type = "string", required = true,
                      len_min = 1, len_max = 200 }, },
                  { aliases = names("Other names for it.") },
                  { upstream = {
                      description = "Name of the Kong upstream whose targets "
                                    .. "serve it.",
                      type = "string", required = true, len_min = 1 }, },
                  { served_as = {
                      description = "What its servers call it, where that is "
                                    .. "something else than `name`.",
                      type = "string", len_min = 1, len_max = 1000 }, },
                  { teams = names("Teams that may use it: callers with the "
                                  .. "tag `team:NAME`.") },
                  { users = names("Users that may use it. Without teams and "
                                  .. "users everybody may.") },
                  { key = {
                      description = "What its servers want as a Bearer token.",
                      type = "string", encrypted = true,
                      referenceable = true }, },
                }, }, }, },
        }, }, },
  },
  entity_checks = {
    { custom_entity_check = {
        field_sources = { "config" },
        fn = function(entity)
          local fault = models.fault(entity.config.models or {})
          if fault then
            return nil, fault
          end

          return true
        end, }, },
  },
}
