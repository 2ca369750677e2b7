local typedefs = require "kong.db.schema.typedefs"


return {
  name = "llm-queue",
  fields = {
    { protocols = typedefs.protocols_http },
    { consumer = typedefs.no_consumer },
    { config = {
        type = "record",
        fields = {
          { in_flight = {
              description = "Calls that one upstream serves at the same time, "
                            .. "over all nodes.",
              type = "integer",
              required = true,
              between = { 1, 100000 }, }, },
          { nodes = {
              description = "Nodes of Kong: each has its part of the places.",
              type = "integer",
              required = true,
              default = 1,
              between = { 1, 1000 }, }, },
          { max_waiting = {
              description = "Calls that may wait at a node for one upstream.",
              type = "integer",
              required = true,
              default = 1000,
              between = { 0, 1000000 }, }, },
          { max_waiting_per_user = {
              description = "Of them those of one user.",
              type = "integer",
              required = true,
              default = 200,
              between = { 0, 1000000 }, }, },
          { max_wait_seconds = {
              description = "Longest wait; then the answer is 429.",
              type = "number",
              required = true,
              default = 120,
              between = { 0, 86400 }, }, },
          { others_wait_percent = {
              description = "Of a hundred calls of users who take less than "
                            .. "their share so many may find no place free, "
                            .. "because one who takes more has it.",
              type = "number",
              required = true,
              default = 5,
              between = { 1, 100 }, }, },
          { weights = {
              description = "Shares that are not 1, by user, or by team as "
                            .. "team:NAME. A consumer's tag weight:N wins.",
              type = "map",
              required = true,
              default = {},
              keys = { type = "string", len_min = 1 },
              values = { type = "integer", between = { 1, 1000 } }, }, },
          { priority = {
              description = "Whether to tell vLLM which call is due first.",
              type = "boolean",
              required = true,
              default = false, }, },
          { contact = {
              description = "Whom the error names who can help.",
              type = "string",
              required = false,
              len_min = 1,
              len_max = 200, }, },
        }, }, },
  },
}
