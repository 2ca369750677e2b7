local typedefs = require "kong.db.schema.typedefs"


-- More than this does not fit into a log entry anyway: Kong's queue and the
-- collector's body limit are of this order.
local MAX_BODY_SIZE = 67108864


return {
  name = "llm-audit",
  fields = {
    { protocols = typedefs.protocols_http },
    { config = {
        type = "record",
        fields = {
          { max_request_body_size = {
              description = "The most bytes of a request body that go into the "
                            .. "log entry. In larger JSON the middle of long "
                            .. "texts is left out; of other bodies the head "
                            .. "is kept.",
              type = "integer",
              required = true,
              default = 1048576,
              between = { 0, MAX_BODY_SIZE }, }, },
          { max_response_body_size = {
              description = "The most bytes of a response body that go into "
                            .. "the log entry. Of a larger body the head is "
                            .. "kept. In a larger event stream events are "
                            .. "joined; if that is not enough, the head and "
                            .. "the tail are kept, cut between events.",
              type = "integer",
              required = true,
              default = 1048576,
              between = { 0, MAX_BODY_SIZE }, }, },
          { capture = {
              description = "What goes into the log entry: `full` adds both "
                            .. "bodies, `metadata` only sizes, times, flags "
                            .. "and what the server reports: its model and "
                            .. "the token counts. `none` keeps the call out "
                            .. "of the log, unless it is refused: for routes "
                            .. "without conversations. Scope the plugin to a "
                            .. "consumer or a route to choose for them.",
              type = "string",
              required = true,
              default = "full",
              one_of = { "full", "metadata", "none" }, }, },
          { include_usage = {
              description = "Whether to ask vLLM for the token usage of "
                            .. "streamed completions when the client did "
                            .. "not. The additional event goes into the log "
                            .. "entry, not to the client.",
              type = "boolean",
              required = true,
              default = true, }, },
          { strict_requests = {
              description = "Whether to answer 400 to a request that the "
                            .. "model server and the gateway might read "
                            .. "differently: UTF-16, bytes behind the JSON, "
                            .. "deep nesting, Content-Encoding. Otherwise it "
                            .. "passes, and its entry says `unread`.",
              type = "boolean",
              required = true,
              default = true, }, },
          { upload_room_mb = {
              description = "Megabytes of large request bodies that may be on "
                            .. "their way in one worker, a user's at most "
                            .. "half of it; 0: any number. A call beyond it "
                            .. "gets 429 or 503.",
              type = "integer",
              required = true,
              default = 0,
              between = { 0, 1048576 }, }, },
          { body_seconds = {
              description = "How long a request body may take to arrive, plus "
                            .. "a second for each 128 KiB of it; 0: for ever. "
                            .. "What takes longer gets 408.",
              type = "integer",
              required = true,
              default = 60,
              between = { 0, 86400 }, }, },
          { openai_errors = {
              description = "Whether to give errors that Kong itself answers "
                            .. "with the shape that the SDKs of OpenAI and "
                            .. "Anthropic expect.",
              type = "boolean",
              required = true,
              default = true, }, },
          { anonymous_per_minute = {
              description = "How many refused calls without a valid key a "
                            .. "client address may make in a minute until "
                            .. "they are only counted, and answered with 429. "
                            .. "0: no limit.",
              type = "integer",
              required = true,
              default = 60,
              between = { 0, 1000000 }, }, },
          { refused_per_minute = {
              description = "How many calls of a user with a valid key the "
                            .. "gateway may refuse in a minute until they are "
                            .. "only counted. 0: no limit.",
              type = "integer",
              required = true,
              default = 60,
              between = { 0, 1000000 }, }, },
        }, }, },
  },
}
