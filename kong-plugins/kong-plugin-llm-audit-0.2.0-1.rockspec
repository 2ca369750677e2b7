package = "kong-plugin-llm-audit"
version = "0.2.0-1"

source = {
  url = "git+file://.",
  tag = "v0.2.0",
}

description = {
  summary = "Whole conversations with a model in Kong's log entries",
  detailed = [[
    Adds request and response bodies, time to first byte, token usage of
    streams and a sequence number to the entries of Kong's log plugins, and
    gives Kong's own errors the shape that OpenAI's SDKs expect. Streams stay
    streams.
  ]],
  license = "Apache-2.0",
}

dependencies = {
  "lua >= 5.1, < 5.2",
}

build = {
  type = "builtin",
  modules = {
    ["kong.plugins.llm-audit.admission"] =
      "kong/plugins/llm-audit/admission.lua",
    ["kong.plugins.llm-audit.body_text"] =
      "kong/plugins/llm-audit/body_text.lua",
    ["kong.plugins.llm-audit.capture"] =
      "kong/plugins/llm-audit/capture.lua",
    ["kong.plugins.llm-audit.entry_bodies"] =
      "kong/plugins/llm-audit/entry_bodies.lua",
    ["kong.plugins.llm-audit.error_plan"] =
      "kong/plugins/llm-audit/error_plan.lua",
    ["kong.plugins.llm-audit.errors"] =
      "kong/plugins/llm-audit/errors.lua",
    ["kong.plugins.llm-audit.event_shape"] =
      "kong/plugins/llm-audit/event_shape.lua",
    ["kong.plugins.llm-audit.estimate"] =
      "kong/plugins/llm-audit/estimate.lua",
    ["kong.plugins.llm-audit.gate"] =
      "kong/plugins/llm-audit/gate.lua",
    ["kong.plugins.llm-audit.handler"] =
      "kong/plugins/llm-audit/handler.lua",
    ["kong.plugins.llm-audit.json_length"] =
      "kong/plugins/llm-audit/json_length.lua",
    ["kong.plugins.llm-audit.log_queue"] =
      "kong/plugins/llm-audit/log_queue.lua",
    ["kong.plugins.llm-audit.queue_keeper"] =
      "kong/plugins/llm-audit/queue_keeper.lua",
    ["kong.plugins.llm-audit.reading"] =
      "kong/plugins/llm-audit/reading.lua",
    ["kong.plugins.llm-audit.refused"] =
      "kong/plugins/llm-audit/refused.lua",
    ["kong.plugins.llm-audit.reported"] =
      "kong/plugins/llm-audit/reported.lua",
    ["kong.plugins.llm-audit.request_text"] =
      "kong/plugins/llm-audit/request_text.lua",
    ["kong.plugins.llm-audit.response_owners"] =
      "kong/plugins/llm-audit/response_owners.lua",
    ["kong.plugins.llm-audit.schema"] =
      "kong/plugins/llm-audit/schema.lua",
    ["kong.plugins.llm-audit.sse"] =
      "kong/plugins/llm-audit/sse.lua",
    ["kong.plugins.llm-audit.sequence"] =
      "kong/plugins/llm-audit/sequence.lua",
    ["kong.plugins.llm-audit.stored_responses"] =
      "kong/plugins/llm-audit/stored_responses.lua",
    ["kong.plugins.llm-audit.stream_capture"] =
      "kong/plugins/llm-audit/stream_capture.lua",
    ["kong.plugins.llm-audit.stream_text"] =
      "kong/plugins/llm-audit/stream_text.lua",
    ["kong.plugins.llm-audit.sync"] =
      "kong/plugins/llm-audit/sync.lua",
    ["kong.plugins.llm-audit.usage_counts"] =
      "kong/plugins/llm-audit/usage_counts.lua",
    ["kong.plugins.llm-audit.usage_filter"] =
      "kong/plugins/llm-audit/usage_filter.lua",
    ["kong.plugins.llm-queue.gauges"] =
      "kong/plugins/llm-queue/gauges.lua",
    ["kong.plugins.llm-queue.handler"] =
      "kong/plugins/llm-queue/handler.lua",
    ["kong.plugins.llm-queue.places"] =
      "kong/plugins/llm-queue/places.lua",
    ["kong.plugins.llm-queue.recent"] =
      "kong/plugins/llm-queue/recent.lua",
    ["kong.plugins.llm-queue.schema"] =
      "kong/plugins/llm-queue/schema.lua",
    ["kong.plugins.llm-queue.turns"] =
      "kong/plugins/llm-queue/turns.lua",
    ["kong.plugins.llm-queue.weights"] =
      "kong/plugins/llm-queue/weights.lua",
    ["kong.plugins.llm-queue.words"] =
      "kong/plugins/llm-queue/words.lua",
    ["kong.plugins.llm-quota.counts"] =
      "kong/plugins/llm-quota/counts.lua",
    ["kong.plugins.llm-quota.estimate"] =
      "kong/plugins/llm-quota/estimate.lua",
    ["kong.plugins.llm-quota.handler"] =
      "kong/plugins/llm-quota/handler.lua",
    ["kong.plugins.llm-quota.ledger"] =
      "kong/plugins/llm-quota/ledger.lua",
    ["kong.plugins.llm-quota.like"] =
      "kong/plugins/llm-quota/like.lua",
    ["kong.plugins.llm-quota.limits"] =
      "kong/plugins/llm-quota/limits.lua",
    ["kong.plugins.llm-quota.prompts"] =
      "kong/plugins/llm-quota/prompts.lua",
    ["kong.plugins.llm-quota.schema"] =
      "kong/plugins/llm-quota/schema.lua",
    ["kong.plugins.llm-quota.words"] =
      "kong/plugins/llm-quota/words.lua",
    ["kong.plugins.llm-router.handler"] =
      "kong/plugins/llm-router/handler.lua",
    ["kong.plugins.llm-router.model_asked"] =
      "kong/plugins/llm-router/model_asked.lua",
    ["kong.plugins.llm-router.schema"] =
      "kong/plugins/llm-router/schema.lua",
    ["llm_gateway.answers"] =
      "llm_gateway/answers.lua",
    ["llm_gateway.api"] =
      "llm_gateway/api.lua",
    ["llm_gateway.early_reading"] =
      "llm_gateway/early_reading.lua",
    ["llm_gateway.form"] =
      "llm_gateway/form.lua",
    ["llm_gateway.forwarded"] =
      "llm_gateway/forwarded.lua",
    ["llm_gateway.guard"] =
      "llm_gateway/guard.lua",
    ["llm_gateway.json_bytes"] =
      "llm_gateway/json_bytes.lua",
    ["llm_gateway.json_outline"] =
      "llm_gateway/json_outline.lua",
    ["llm_gateway.json_scan"] =
      "llm_gateway/json_scan.lua",
    ["llm_gateway.json_tail"] =
      "llm_gateway/json_tail.lua",
    ["llm_gateway.models"] =
      "llm_gateway/models.lua",
    ["llm_gateway.reading"] =
      "llm_gateway/reading.lua",
    ["llm_gateway.refusal"] =
      "llm_gateway/refusal.lua",
    ["llm_gateway.request"] =
      "llm_gateway/request.lua",
    ["llm_gateway.request_body"] =
      "llm_gateway/request_body.lua",
    ["llm_gateway.response_servers"] =
      "llm_gateway/response_servers.lua",
    ["llm_gateway.route"] =
      "llm_gateway/route.lua",
    ["llm_gateway.seldom"] =
      "llm_gateway/seldom.lua",
    ["llm_gateway.shared_number"] =
      "llm_gateway/shared_number.lua",
    ["llm_gateway.sync_members"] =
      "llm_gateway/sync_members.lua",
    ["llm_gateway.upload_room"] =
      "llm_gateway/upload_room.lua",
  },
}
