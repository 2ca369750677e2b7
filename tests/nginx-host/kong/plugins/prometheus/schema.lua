--- Test equipment: the settings of Kong's prometheus plugin, as far as the stand-in goes.

local typedefs = require "kong.db.schema.typedefs"

local OFF = { type = "boolean", default = false }


return {
  name = "prometheus",
  fields = {
    { protocols = typedefs.protocols },
    { config = {
        type = "record",
        fields = {
          { per_consumer = OFF },
          { status_code_metrics = OFF },
          { ai_metrics = OFF },
          { latency_metrics = OFF },
          { bandwidth_metrics = OFF },
          { upstream_health_metrics = OFF },
        },
    } },
  },
}
