local typedefs = require "kong.db.schema.typedefs"


return {
  name = "llm-quota",
  fields = {
    { protocols = typedefs.protocols_http },
    { consumer = typedefs.no_consumer },
    { config = {
        type = "record",
        fields = {
          { fail_closed = {
              description = "Whether to answer 503 while it is not known what "
                            .. "is used: before the collector's first answer, "
                            .. "and when it has not answered for a minute. "
                            .. "Otherwise calls go on by what is known.",
              type = "boolean",
              required = true,
              default = false, }, },
          { default_max_tokens = {
              description = "How many tokens are reserved for an answer when "
                            .. "the request does not say how many it may "
                            .. "have.",
              type = "integer",
              required = true,
              default = 1024,
              between = { 0, 2147483647 }, }, },
          { contact = {
              description = "Whom the error names who can give more.",
              type = "string",
              required = false,
              len_min = 1,
              len_max = 200, }, },
        }, }, },
  },
}
