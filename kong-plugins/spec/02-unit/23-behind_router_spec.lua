local around = require "spec.helpers.around"

local NOT_FOUND = '{"error":{"message":"The model `a/b` does not exist."}}'


describe("llm-audit behind llm-router", function()
  local running
  around(function(new)
    running = new
  end)

  it("tells which server had the call last", function()
    for addresses, backend in pairs({
      ["10.0.0.1:8000"] = "10.0.0.1:8000",
      ["10.0.0.1:8000, 10.0.0.2:8001"] = "10.0.0.2:8001",
      ["10.0.0.1:8000 : [::1]:8001"] = "[::1]:8001",
      -- nginx came to none
      ["kong_upstream"] = false,
      [""] = false,
    }) do
      for _, is_routed in ipairs({ true, false }) do
        local result = running:call({
          asked = { routed_to = is_routed and { name = "m" } or nil },
          request = { body = '{"model":"m"}', upstream_addr = addresses },
          response = { chunks = { "{}" } },
        })
        assert.equal(is_routed and backend or nil, result.llm.backend)
        assert.is_nil(result.llm.refused_by)
      end
    end
  end)

  it("sends the key of the model's server, not that of all servers", function()
    local result = running:call({
      asked = { routed_to = { name = "m" }, server_key = "sk-of-m" },
      request = { body = '{"model":"m"}',
                  -- as request-transformer left it
                  headers = { Authorization = "Bearer sk-of-all" } },
      response = {},
    })
    assert.equal("Bearer sk-of-m", result.service.headers.authorization)
  end)

  it("leaves an answer of the router as it is", function()
    local result = running:call({
      refused = true,
      asked = { refused_by = "router", found = { model_asked = "a/b" } },
      request = { body = '{"model":"a/b"}' },
      response = {
        status = 404, source = "exit", chunks = { NOT_FOUND },
        headers = { ["Content-Type"] = "application/json",
                    ["Content-Length"] = tostring(#NOT_FOUND) },
      },
    })
    assert.equal(NOT_FOUND, result.client.body)
    assert.equal("router", result.llm.refused_by)
    assert.equal("a/b", result.llm.model_asked)
    assert.is_nil(result.llm.unread)
  end)

  it("makes one text of what both want to be different", function()
    local body = '{"model":"alias","stream":true}'
    local changes = { { from = 10, to = 16, text = '"name"' } }
    local result = running:call({
      asked = { changes = changes },
      request = { body = body },
      response = {},
    })
    assert.equal('{"stream_options":{"include_usage":true},"model":"name",'
                 .. '"stream":true}', result.service.body)
    -- what the client wrote
    assert.equal(body, result.entry.request.body)
  end)

  it("logs a call whose client went while the router read", function()
    running:call({ request = { body = "{}" }, response = {} })
    local entry = {}
    kong.ctx.plugin = { is_reading = true }
    kong.ctx.shared = { llm_request = { is_reading = true, api = "chat" } }
    kong.log.set_serialize_value = function(key, value)
      entry[key] = value
    end
    kong.response.get_status = function()
      return 499
    end
    running.handler.log_unreached()
    assert.is_true(entry.llm.aborted)
    assert.equal("chat", entry.llm.api)
    assert.equal(0, entry.llm.response_bytes)
  end)
end)
